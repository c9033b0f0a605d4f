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


def test_masks_of_boxes_are_compared_with_annotations(davis):
    pytest.importorskip("cv2")
    found = list(first_masks.scores(davis))
    assert len(found) == 2
    assert all(0 < score <= 1 for score, _ in found)
    box = first_masks.box_around(next(sequences(davis)).read(0) == 1)
    assert min(box) >= 0


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
