"""Clips of annotated videos, whose frames are in order, with random gaps."""

from collections.abc import Sequence as Listing
from pathlib import Path

import numpy as np

from stm_fast.data.sequences import Sequence
from stm_fast.data.source import Frame, file_frame
from stm_fast.errors import InputError
from stm_fast.listing import list_images


class VideoSource:
    """Clips of the sequences of a set (`stm_fast.data.sequences`).

    Args:
        sequences: all of their frames need masks; for YouTube-VOS, all frames that its `meta.json` lists.
        skip_divisor: divides the largest skip, for sets that only have every n-th frame of their videos.

    Raises:
        InputError: no sequence, or a frame without a mask.
    """

    moving = True

    def __init__(self, sequences: Listing[Sequence], skip_divisor: int = 1) -> None:
        if not sequences:
            raise InputError("sequences: none given, expected at least one")
        self._sequences = sequences
        self._skip_divisor = skip_divisor
        self._files = [_list_frames(sequence) for sequence in sequences]

    def __len__(self) -> int:
        return len(self._sequences)

    def check_length(self, frames: int) -> None:
        """Raises InputError that names a sequence with fewer frames, if there is one."""
        for index in range(len(self)):
            self._check_length(index, frames)

    def length(self, index: int) -> int:
        """Frames of sequence `index`."""
        return len(self._files[index])

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Each gap is drawn from 0 to `max_skip`, or less if the sequence is short."""
        self._check_length(index, frames)
        return draw_times(self.length(index), frames, max_skip // self._skip_divisor, generator)

    def frame(self, index: int, time: int) -> Frame:
        """A frame of sequence `index` and its mask."""
        sequence, file = self._sequences[index], self._files[index][time]
        return file_frame(file, sequence.read_annotation(file.stem), sequence.annotation(file.stem))

    def _check_length(self, index: int, frames: int) -> None:
        found = len(self._files[index])
        if found < frames:
            raise InputError(f"{self._sequences[index].frames}: {found} frames, expected at least {frames}")


def draw_times(length: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
    """Increasing times of `frames` frames out of `length`, with 0 to `max_skip` frames skipped between two."""
    widest = min(max_skip + 1, (length - 1) // max(frames - 1, 1))
    steps = generator.integers(1, widest + 1, frames - 1)
    start = generator.integers(length - int(steps.sum()))
    return [int(start), *(int(time) for time in start + steps.cumsum())]


def _list_frames(sequence: Sequence) -> list[Path]:
    if sequence.frames is None:
        raise InputError(f"{sequence.annotations}: sequence {sequence.name} has no frames")
    files = list_images(sequence.frames)
    if sequence.required is not None:
        files = [file for file in files if file.stem in sequence.required]
    if not files:
        raise InputError(f"{sequence.frames}: no frames in it, expected jpg, png, webp or tif images")
    masks = set(sequence.annotated)
    for file in files:
        if file.stem not in masks:
            raise InputError(f"{file}: frame without mask, expected {sequence.annotations / file.stem}.png")
    return files
