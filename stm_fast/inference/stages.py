"""Times the stages of each frame, by hooks on the parts of the network."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.hooks import RemovableHandle

from stm_fast.network import STM

STAGES = ("memory encoder", "memory write", "query encoder", "memory read", "decoder", "aggregation")


class StageProfiler:
    """Seconds by stage of everything the network does inside a `with` block, in which `frame()` encloses each frame.

    A stage lasts from the end of the previous one to its own end, so that the stages of a frame add up to the whole:
    "memory write" and "memory read" are the time between parts of the network, "aggregation" the time after them. On a
    GPU the times are measured on the device and read once per frame, without waiting in between.

    Attributes:
        seconds: by stage.
        total: seconds of all frames.
    """

    def __init__(self, model: STM) -> None:
        self.total = 0.0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._model = model
        self._device = next(model.parameters()).device
        self._marks: list[tuple[str, Any]] = []  # a stage and its end: seconds, or a CUDA event
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        model = self._model
        self._handles = [
            model.memory_key_value.register_forward_hook(self._marker("memory encoder")),
            model.query_encoder.register_forward_pre_hook(self._marker("memory write")),
            model.query_key_value.register_forward_hook(self._marker("query encoder")),
            model.decoder.register_forward_pre_hook(self._marker("memory read")),
            model.decoder.register_forward_hook(self._marker("decoder")),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Encloses the work on a frame."""
        self.start()
        yield
        self.total += self.stop()

    def start(self) -> None:
        """Starts a frame."""
        self._marks = [("", self._now())]

    def stop(self) -> float:
        """Ends a frame: the time since the last part is its aggregation. Returns the frame's seconds."""
        self._marks.append(("aggregation", self._now()))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        total = 0.0
        for (_, before), (stage, after) in pairwise(self._marks):
            seconds = after - before if isinstance(before, float) else before.elapsed_time(after) / 1000
            self.seconds[stage] += seconds
            total += seconds
        return total

    def _marker(self, stage: str) -> Any:
        def mark(*_: object) -> None:
            self._marks.append((stage, self._now()))

        return mark

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
