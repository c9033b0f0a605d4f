"""Baselines that put a score into perspective: the first mask copied, and an untrained network."""

from collections.abc import Collection
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
    """A network with random weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return STM(**asdict(architecture)).eval()


class CopyingSegmenter:
    """A segmenter in which each object keeps its given mask."""

    def __init__(self) -> None:
        self.object_ids: list[int] = []
        self._prob: Tensor | None = None  # [1 + O, H, W]

    def step(self, frame: Tensor, mask: Tensor | None = None, objects: list[int] | None = None) -> Tensor:
        """Like :meth:`stm_fast.VideoSegmenter.step`."""
        if self._prob is None:
            self._prob = torch.ones(1, *frame.shape[1:])
        if mask is not None:
            ids, planes = split_mask(mask, objects)
            self._prob = impose(self._prob, self.object_ids, ids, planes)
            self.object_ids += [object_id for object_id in ids if object_id not in self.object_ids]
        return self._prob


def copy_first_masks(sequences: Collection[Sequence], output: Path) -> None:
    """Like `run_sequences`, with a `CopyingSegmenter`."""
    fill_unfinished(sequences, output / MASKS, _copy)


def _copy(sequence: Sequence, folder: Path) -> None:
    assert sequence.frames is not None
    run_frames(sequence, open_frames(sequence.frames), CopyingSegmenter(), folder)
