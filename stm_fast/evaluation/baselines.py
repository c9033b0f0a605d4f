"""What a score is worth: the same set without a method, and without training."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from stm_fast.data.sequences import Ids, Sequence
from stm_fast.evaluation.output_folder import MASKS
from stm_fast.network import STM, Architecture
from stm_fast.video import MaskWriter, open_frames
from stm_fast.whole_file import make_folder, refuse_links, whole_folder

COPIED = "first mask copied"
UNTRAINED = "untrained network"


def untrained(architecture: Architecture) -> STM:
    """A network with random weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return STM(**asdict(architecture)).eval()


def copy_first_masks(sequences: Iterable[Sequence], output: Path) -> None:
    """Each object keeps the mask that it was given, in ``output/Annotations/<sequence>``; finished ones are skipped.

    Raises InputError where that folder is a link.
    """
    refuse_links(output / MASKS)
    make_folder(output / MASKS)
    for sequence in sequences:
        final = output / MASKS / sequence.name
        if not final.is_dir():
            with whole_folder(final) as partial:
                _copy(sequence, partial)


def _copy(sequence: Sequence, folder: Path) -> None:
    assert sequence.frames is not None
    masks = MaskWriter(folder)
    known: list[int] = []
    current: Ids = np.zeros_like(sequence.read_annotation(sequence.annotated[0]))  # [H, W]
    for frame in open_frames(sequence.frames):
        given = sequence.given(frame.name, known)
        if given is not None:
            ids, new = given
            current = np.where(np.isin(ids, new), ids, current)
            known += new
        if sequence.required is None or frame.name in sequence.required:
            masks.write(frame.name, current)
