"""What a score is worth: the same set without a method, and without training."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from stm_fast.data.sequences import Sequence
from stm_fast.evaluation.benchmark_sets import run_frames
from stm_fast.evaluation.output_folder import MASKS, fill_unfinished
from stm_fast.inference.objects import impose, split_mask
from stm_fast.network import STM, Architecture
from stm_fast.video import open_frames

COPIED = "first mask copied"
UNTRAINED = "untrained network"


def untrained(architecture: Architecture) -> STM:
    """A network with random weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return STM(**asdict(architecture)).eval()


class CopyingSegmenter:
    """Each object keeps the mask that it was given."""

    def __init__(self) -> None:
        self.object_ids: list[int] = []
        self._prob: Tensor | None = None  # [1 + O, H, W]

    def step(self, frame: Tensor, mask: Tensor | None = None, objects: list[int] | None = None) -> Tensor:
        """As :meth:`stm_fast.inference.VideoSegmenter.step`."""
        if self._prob is None:
            self._prob = torch.ones(1, *frame.shape[1:])
        if mask is not None:
            ids, planes = split_mask(mask, objects)
            self._prob = impose(self._prob, self.object_ids, ids, planes)
            self.object_ids += [object_id for object_id in ids if object_id not in self.object_ids]
        return self._prob


def copy_first_masks(sequences: Iterable[Sequence], output: Path) -> None:
    """Leaves the masks that a `CopyingSegmenter` makes of sequences as `run_sequences` does; finished ones are skipped.

    Raises InputError where ``output/Annotations`` is a link.
    """
    fill_unfinished(sequences, output / MASKS, _copy)


def _copy(sequence: Sequence, folder: Path) -> None:
    assert sequence.frames is not None
    run_frames(sequence, open_frames(sequence.frames), CopyingSegmenter(), folder)
