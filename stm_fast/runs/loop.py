"""The loop over the frames of a video, which all runs share, and the threads for decoding and writing around it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm_fast.inference.objects import label
from stm_fast.inference.sightings import Sighting, Watch
from stm_fast.video import Frame, object_ids

Item = TypeVar("Item")

FRAMES_WAITING = 4  # in each queue: before and after the network

_END: Any = object()

Ids = npt.NDArray[np.uint8]  # [H, W]
# a given mask, and the ids in it that count; None for all
Prompt = tuple[Ids, list[int] | None]
# from a frame and the ids of the current objects to the mask given for the frame, if any
Prompts = Callable[[Frame, list[int]], Prompt | None]


class Segmenter(Protocol):
    """Segments frames one by one, like :class:`stm_fast.VideoSegmenter`."""

    @property
    def object_ids(self) -> list[int]: ...

    def step(self, frame: Tensor, mask: Tensor | None = None, objects: list[int] | None = None) -> Tensor: ...


class Segmented(NamedTuple):
    """A frame and its mask."""

    frame: Frame
    ids: Ids | None  # [H, W]; None if an earlier process wrote the mask
    sightings: Sequence[Sighting] = ()  # of each current object, if requested
    object_ids: Sequence[int] = ()  # of the channels of `prob`, from the second on
    prob: Tensor | None = None  # [1 + O, H, W] float32 on the CPU, if requested


def run(
    frames: Iterable[Frame],
    prompts: Prompts,
    segmenter: Segmenter,
    put: Callable[[Segmented], None],
    *,
    first: int = 0,
    watch: Watch | None = None,
    keep_prob: bool = False,
    measure: Callable[[], AbstractContextManager[object]] = nullcontext,
    after: Callable[[int], None] = lambda done: None,
) -> int:
    """Segments frames one by one, keeping none.

    Args:
        frames: of one video, in the order in which they are segmented.
        prompts: the given masks.
        segmenter: its state is that before the first frame that is not done.
        put: takes each frame with its mask.
        first: the number of frames that are done; they are passed on without a mask.
        watch: what tells objects that are found from those that are lost; None to leave that out.
        keep_prob: also pass the probabilities on; from a GPU, they are copied.
        measure: a context around the network on each frame, from pixels and masks in memory to ids in memory.
        after: called after each frame with the number of frames done.

    Returns:
        The number of frames.
    """
    done = 0
    for frame in frames:
        if done < first:
            put(Segmented(frame, None))
        else:
            prompt = prompts(frame, segmenter.object_ids)
            with measure():
                prob = step(frame, prompt, segmenter)
                segmented = _segmented(frame, prob, segmenter.object_ids, watch, given_ids(prompt))
                if keep_prob:
                    segmented = segmented._replace(object_ids=segmenter.object_ids, prob=prob.cpu())
            put(segmented)
        done += 1
        after(done)
    return done


def given_ids(prompt: Prompt | None) -> list[int]:
    """The ids that a given mask counts for."""
    if prompt is None:
        return []
    mask, objects = prompt
    return object_ids(mask) if objects is None else objects


def step(frame: Frame, prompt: Prompt | None, segmenter: Segmenter) -> Tensor:
    """Segments a frame with the mask given for it, if any: probabilities ``[1 + O, H, W]``."""
    mask, objects = prompt or (None, None)
    return segmenter.step(as_tensor(frame), None if mask is None else torch.from_numpy(mask), objects)


def as_tensor(frame: Frame) -> Tensor:
    """The pixels of a frame, uint8 [3, H, W]; they share its memory."""
    return torch.from_numpy(frame.image).permute(2, 0, 1)


def _segmented(frame: Frame, prob: Tensor, ids: list[int], watch: Watch | None, given: list[int]) -> Segmented:
    mask = label(prob, ids)
    sightings = [] if watch is None else watch.see(prob, mask, ids, given)
    return Segmented(frame, mask.cpu().numpy(), sightings)


def prefetch(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, produced ahead of time by a thread; an exception is raised in place of its item.

    At most `depth` items wait while one more is produced. Close the generator if it is not exhausted.
    """
    iterator, thread = iter(items), ThreadPoolExecutor(1, "stm_fast-prefetch")
    try:
        waiting = deque(thread.submit(next, iterator, _END) for _ in range(depth + 1))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, iterator, _END))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


class BackgroundWriter(Generic[Item]):
    """Calls `consume(item)` in a thread, in order; at most `depth` items wait.

    A context manager, which waits for all items on exit. An exception of `consume` is raised by the next `put` or on
    exit; the items after it are dropped.
    """

    def __init__(self, consume: Callable[[Item], None], depth: int) -> None:
        self._consume, self._depth = consume, depth
        self._error: BaseException | None = None
        self._waiting: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, "stm_fast-writer")

    def put(self, item: Item) -> None:
        self._wait(self._depth)
        self._waiting.append(self._thread.submit(self._run, item))

    def flush(self) -> None:
        """Waits until all items are consumed; raises what `consume` raised."""
        self._wait(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait(0)

    def _wait(self, most: int) -> None:
        """Waits until at most `most` items are left."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()
        if self._error is not None:
            raise self._error

    def _run(self, item: Item) -> None:
        if self._error is None:
            try:
                self._consume(item)
            except BaseException as error:
                self._error = error
