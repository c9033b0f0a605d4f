"""A part of a video, as a video of its own."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from stm_fast.video.frames import Frame, FrameReader

if TYPE_CHECKING:
    from stm_fast.video.sound import Sound


class Excerpt(FrameReader):
    """Consecutive frames of a video: their indices and times start at 0, their names and their rate stay.

    Args:
        reader: of the video, which can be read more than once.
        frames: the indices in it, in steps of 1, at least one.
    """

    def __init__(self, reader: FrameReader, frames: range) -> None:
        if frames.step != 1 or not frames or frames.start < 0:
            raise ValueError(f"frames: {frames}, expected at least one, in steps of 1")
        self._reader, self._frames = reader, frames
        self.path, self.name, self.left_out = reader.path, reader.name, reader.left_out
        self.width, self.height, self.frame_rate = reader.width, reader.height, reader.frame_rate
        self.frame_count = len(frames)

    def forward(self, start: int = 0) -> Iterator[Frame]:
        left = max(0, len(self._frames) - start)
        return map(self._moved, islice(self._reader.forward(self._frames.start + start), left))

    def backward(self, before: int | None = None) -> Iterator[Frame]:
        frames = self._frames[:before]
        return map(self._moved, islice(self._reader.backward(frames.stop), len(frames)))

    def index_of(self, name: str) -> int | None:
        index = self._reader.index_of(name)
        return None if index is None or index not in self._frames else self._frames.index(index)

    def name_of(self, index: int) -> str:
        return self._reader.name_of(self._frames[index])

    def file_name(self, index: int) -> str:
        return self._reader.file_name(self._frames[index])

    def sound(self, start: float = 0.0) -> "Sound | None":
        return self._reader.sound(self._begin + start)

    def _moved(self, frame: Frame) -> Frame:
        return replace(frame, index=frame.index - self._frames.start, time=frame.time - self._begin)

    @cached_property
    def _begin(self) -> float:
        """The time of the first frame in the video, in seconds."""
        return 0.0 if self._frames.start == 0 else next(self._reader.forward(self._frames.start)).time
