"""The scripts that compare first masks and states with annotations."""

from collections import Counter

import numpy as np
import pytest
import torch

import first_masks
import states
from annotated import sequences
from small_inputs import FRAMES, small_network, write_davis
from stm_fast.inference.engine import Segmentation
from stm_fast.inference.sightings import Sighting
from stm_fast.page.prompters import make_prompter


@pytest.fixture
def davis(tmp_path):
    return write_davis(tmp_path, change=lambda ids: np.where(ids == 1, np.uint8(255), np.uint8(0)))


def test_sequences_are_read_in_both_directions(davis):
    blob, star = sequences(davis)
    assert [blob.name, star.name, len(blob.frames)] == ["blob", "star", FRAMES]
    assert [one.name for one in sequences(davis, ["star"])] == ["star"]
    assert np.unique(blob.read(0)).tolist() == [0, 1], "a lone 255 is object 1"
    assert np.array_equal(blob.backward().read(0), blob.read(FRAMES - 1))
    assert blob.backward().frames[0] == blob.frames[-1]


@pytest.mark.parametrize("prompter", ["network", "grabcut"])
def test_first_masks_are_compared_with_annotations(davis, prompter):
    pytest.importorskip("cv2")
    header, *rows = first_masks.table([davis], make_prompter(prompter), ["star"])
    kinds = ["box", "lasso", "loop", *(["click"] if prompter == "network" else [])]
    assert [row.split()[:2] for row in rows] == [[kind, str(n)] for kind in kinds for n in first_masks.CLICKS]
    assert header.split()[:2] == ["region", "clicks"]
    last = [float(row.split()[2]) for row in rows if row.split()[1] == "8"]
    assert min(last) > 70


@pytest.mark.parametrize(
    ("state", "right_mask", "expected"),
    [
        ("found", True, {"frames": 1}),
        ("doubtful", True, {"frames": 1, "warned": 1}),
        ("lost", False, {"frames": 1, "warned": 1, "right": 1, "wrong": 1}),
        ("found", False, {"frames": 1, "wrong": 1, "missed": 1}),
    ],
)
def test_states_are_judged_by_j(davis, state, right_mask, expected):
    sequence = next(sequences(davis))
    own = torch.from_numpy(sequence.read(1) == 1).float()
    plane = own if right_mask else torch.zeros_like(own)
    result = Segmentation(1, torch.stack([1 - plane, plane]), [1], [Sighting(1, 4, 0.9, 0.9, state)])
    assert +states.judged(result, sequence) == Counter(expected)


def test_every_annotated_frame_but_the_first_is_judged(davis):
    assert states.judge(next(sequences(davis)), small_network())["frames"] == FRAMES - 1
