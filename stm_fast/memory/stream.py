"""Double buffering on the model's device: while one page is read, the next one is copied."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from stm_fast.memory.pages import Pages

# the page of each object for one step; None if an object has none
Step = Sequence[int | None]


class PageStream:
    """Copies pages to a device, one page of every object per step.

    On a GPU copies run on a separate stream: a copy waits for the last read of its buffer, and a read waits for its
    copy. The host never waits.

    Args:
        pages: where pages come from.
        page_bytes: size of a page.
        device: where they are copied.
    """

    def __init__(self, pages: Pages, page_bytes: int, device: torch.device) -> None:
        self._pages, self._page_bytes, self._device = pages, page_bytes, device
        self._buffers: list[Tensor] = []  # two of [O, page_bytes]
        self._cuda = _CudaOrder(device) if device.type == "cuda" else None

    @property
    def nbytes(self) -> int:
        """Size of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def steps(self, steps: Sequence[Step]) -> Iterator[Tensor]:
        """Each step's pages on the device, uint8 [O, page_bytes]; they are valid until the next step."""
        self._make_buffers(len(steps[0]))
        self._prefetch(steps[0])
        self._copy(steps, 0)
        for number in range(len(steps)):
            self._copy(steps, number + 1)
            if self._cuda is not None:
                self._cuda.wait_for_copy(number % 2)
            yield self._buffers[number % 2]
            if self._cuda is not None:
                self._cuda.read_is_done(number % 2)

    def close(self) -> None:
        """Releases the buffers."""
        self._buffers = []

    def _make_buffers(self, objects: int) -> None:
        if not self._buffers or self._buffers[0].shape[0] != objects:
            self._buffers = []  # free the old ones before allocating new ones
            size = (objects, self._page_bytes)
            self._buffers = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)]
            if self._cuda is not None:
                self._cuda.buffers_are_new()

    def _copy(self, steps: Sequence[Step], number: int) -> None:
        if number >= len(steps):
            return
        if number + 1 < len(steps):
            self._prefetch(steps[number + 1])
        if self._cuda is None:
            self._fill(number % 2, steps[number])
        else:
            with self._cuda.copying(number % 2):
                self._fill(number % 2, steps[number])

    def _fill(self, buffer: int, step: Step) -> None:
        for index, page in enumerate(step):
            if page is not None:
                self._buffers[buffer][index].copy_(self._pages.open(page), non_blocking=True)

    def _prefetch(self, step: Step) -> None:
        for page in step:
            if page is not None:
                self._pages.prefetch(page)


class _CudaOrder:
    """Orders copies and reads by events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied, self._read = _two_events(), _two_events()

    def buffers_are_new(self) -> None:
        # an earlier kernel of this stream may still use their memory
        for buffer in range(2):
            self.read_is_done(buffer)

    @contextmanager
    def copying(self, buffer: int) -> Iterator[None]:
        self._copies.wait_event(self._read[buffer])
        with torch.cuda.stream(self._copies):
            yield
            self._copied[buffer].record()

    def wait_for_copy(self, buffer: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._copied[buffer])

    def read_is_done(self, buffer: int) -> None:
        self._read[buffer].record(torch.cuda.current_stream(self._device))


def _two_events() -> list[torch.cuda.Event]:
    return [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
