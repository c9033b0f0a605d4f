"""Between two given masks, what is found is blended with what was found before."""

import numpy as np
import pytest
import torch

from stm_fast.page.blending import blended, share


@pytest.mark.parametrize(
    ("index", "given", "back", "expected"),
    [
        (5, [], False, 1),
        (5, [0], False, 1),
        (5, [8], True, 1),
        (0, [0, 10], False, 1),  # a given frame
        (1, [0, 10], False, 0.9),
        (9, [0, 10], False, 0.1),
        (9, [0, 10], True, 0.9),
        (1, [0, 10], True, 0.1),
        (5, [0, 4, 10], False, 5 / 6),
        (11, [0, 4, 10], False, 1),
    ],
)
def test_a_result_counts_by_its_distance_from_both(index, given, back, expected):
    assert share(index, given, back=back) == pytest.approx(expected)


def test_both_directions_together_are_whole():
    for index in range(1, 10):
        assert share(index, [0, 10], back=False) + share(index, [0, 10], back=True) == pytest.approx(1)


def test_probabilities_are_blended_and_sum_to_one():
    prob = torch.tensor([0.1, 0.9, 0.0])[:, None, None].expand(3, 2, 2)
    before = {1: np.full((2, 2), 51, np.uint8)}  # 0.2
    found = blended(prob, [1, 2], before, [0.75, 0.75])
    assert torch.allclose(found[:, 0, 0], torch.tensor([0.275, 0.725, 0.0]))
    crowded = blended(prob, [1, 2], {2: np.full((2, 2), 255, np.uint8)}, [0.75, 0.25])
    assert torch.allclose(crowded.sum(0), torch.ones(2, 2))
    assert crowded[1, 0, 0] == pytest.approx(0.9 / 1.65)


def test_an_object_without_earlier_probabilities_keeps_its_own():
    prob = torch.rand(4, 3, 5).softmax(0)
    assert torch.allclose(blended(prob, [3, 5, 9], {}, [0.5, 0.5, 0.0]), prob)
