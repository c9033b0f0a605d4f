"""Soft aggregation against its formula in float64, and at its extremes."""

import pytest
import torch

from stm_fast.network.aggregation import soft_aggregation


def by_the_formula(probability: torch.Tensor) -> torch.Tensor:
    probability = probability.double()
    joint = torch.cat([(1 - probability).prod(0, keepdim=True), probability]).clamp(1e-7, 1 - 1e-7)
    return (joint / (1 - joint)).log()


@pytest.mark.parametrize("objects", [1, 3])
def test_matches_the_formula(objects: int) -> None:
    probability = torch.rand(objects, 5, 7) * 0.98 + 0.01
    logits = soft_aggregation(probability)
    assert logits.shape == (1 + objects, 5, 7)
    torch.testing.assert_close(logits.double(), by_the_formula(probability), rtol=1e-5, atol=1e-5)


def test_softmax_shares_by_the_odds() -> None:
    probability = torch.tensor([0.5, 0.75]).view(2, 1, 1)
    odds = torch.tensor([0.125 / 0.875, 1.0, 3.0])
    torch.testing.assert_close(soft_aggregation(probability).softmax(0).flatten(), odds / odds.sum())


def test_extremes_stay_finite_with_finite_gradients() -> None:
    probability = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]], requires_grad=True)
    logits = soft_aggregation(probability)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert probability.grad is not None
    assert probability.grad.isfinite().all()
    assert logits.argmax(0).tolist()[:3] == [0, 1, 2]


def test_bfloat16_is_aggregated_in_float32() -> None:
    probability = torch.rand(3, 4, 4).bfloat16()
    logits = soft_aggregation(probability)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, soft_aggregation(probability.float()))


def test_autocast_does_not_lower_the_precision() -> None:
    probability = torch.rand(2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = soft_aggregation(probability)
    assert torch.equal(inside, soft_aggregation(probability))
