"""The exact memory read with every sum rounded once: the error that the order of summation alone can cause."""

from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.ops import reference
from stm_fast.ops.inputs import accumulation_dtype
from stm_fast.testing.cases import ReadCase, Tensors, leaves, read_inputs
from stm_fast.testing.criterion import Results

DRAWS = 4  # in a single draw, the roundings of a small read may happen to cancel


def rounded_once(case: ReadCase, doubles: Tensors, dtype: torch.dtype, upstream: Results, seed: int = 2) -> Results:
    """The read and its gradients in float64, computed like a fused engine does, with one rounding per sum.

    Rounding ``sum_c a_c b_c`` once adds eps * sum_c |a_c b_c| with a random sign, eps that of the accumulation dtype:
    terms do not cancel in the error, because each is rounded. The sums are the scores, ``O = P V``, ``dP = dO V^T``,
    ``delta = rowsum(dO * O)`` with `O` as stored, in `dtype`, and the gradients: ``P^T dO`` of the values, sums over
    ``dS = P * (dP - delta + dlse)`` of the others.

    Args:
        doubles: the inputs in float64.
        dtype: that of the result under test.
        upstream: the gradients of out and lse, float64; empty for a read without gradients.

    Returns:
        The results by name, each ``[DRAWS, ...]``.
    """
    scores = _Scores.of(case, doubles)
    eps = torch.finfo(accumulation_dtype(dtype)).eps
    draws = [
        _draw(case, doubles, scores, _Rounding(eps, torch.Generator().manual_seed(seed + draw)), dtype, upstream)
        for draw in range(DRAWS)
    ]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


class _Rounding(NamedTuple):
    """Rounds sums once, up or down by eps times the size of their terms."""

    eps: float
    generator: torch.Generator

    def of(self, total: Tensor, size: Tensor) -> Tensor:
        sign = torch.randint(0, 2, total.shape, generator=self.generator).to(total) * 2 - 1
        return total + self.eps * sign * size


class _Scores(NamedTuple):
    """The exact scores, and the same sums with terms of one sign; each with its own autograd graph."""

    inputs: Tensors
    score: Tensor  # [B, M, N]
    one_sign_inputs: Tensors
    one_sign_score: Tensor  # [B, M, N]
    counted: Tensor  # [B, M, N] bool: within lengths and top_k

    @classmethod
    def of(cls, case: ReadCase, doubles: Tensors) -> "_Scores":
        inputs = leaves(doubles, torch.float64, True)
        # the terms of both (q - k)^2 and q k have one sign if q and k have opposite signs
        opposite = doubles._replace(query=doubles.query.abs(), key=-doubles.key.abs())
        one_sign = leaves(opposite, torch.float64, True)
        read = read_inputs(case, inputs)
        score, one_sign_score = (
            reference.affinity_scores(read_inputs(case, tensors), torch.float64) for tensors in (inputs, one_sign)
        )
        counted = score > -torch.inf
        if read.top_k:
            counted &= reference.largest_scores(score, read.top_k)
        return cls(inputs, score, one_sign, one_sign_score, counted)

    def rounded(self, rounding: _Rounding) -> Tensor:
        exact = self.score.detach().masked_fill(~self.counted, -torch.inf)
        return rounding.of(exact, self.one_sign_score.detach().abs().masked_fill(~self.counted, 0))

    def gradients(self, grad_score: Tensor, rounding: _Rounding) -> Results:
        """Of every input but the value, each element a sum rounded once."""
        totals = _gradients(self.score, self.inputs, grad_score)
        sizes = _gradients(self.one_sign_score, self.one_sign_inputs, grad_score.abs())
        return {name: rounding.of(totals[name], sizes[name].abs()) for name in totals}


def _draw(
    case: ReadCase, doubles: Tensors, scores: _Scores, rounding: _Rounding, dtype: torch.dtype, upstream: Results
) -> Results:
    affinity, lse = reference.softmax_and_lse(scores.rounded(rounding))  # [B, M, N], [B, M]
    affinity = rounding.of(affinity, affinity)  # the exponential rounds too
    value = reference.valid_rows(doubles.value.detach(), read_inputs(case, doubles))  # [B, N, Cv]
    out = rounding.of(affinity @ value, affinity @ value.abs()).to(dtype).double()  # [B, M, Cv]
    stored = rounding.of(lse, lse.abs().masked_fill(lse == -torch.inf, 0))
    affinity = affinity * (lse - stored).nan_to_num().exp()[..., None]  # nan where both are -inf
    results = {"out": out, "lse": stored, "usage": rounding.of(affinity.sum(1), affinity.sum(1))}
    if not upstream:
        return results
    grad_out = upstream["out"]
    grad_affinity = rounding.of(grad_out @ value.mT, grad_out.abs() @ value.mT.abs())  # [B, M, N]
    delta = rounding.of((grad_out * out).sum(-1), (grad_out * out).abs().sum(-1))  # [B, M]
    grad_score = affinity * (grad_affinity - (delta - upstream["lse"])[..., None])  # [B, M, N]
    results |= scores.gradients(grad_score, rounding)
    return results | {"grad_value": rounding.of(affinity.mT @ grad_out, affinity.mT @ grad_out.abs())}


def _gradients(score: Tensor, inputs: Tensors, grad_score: Tensor) -> Results:
    named = {name: tensor for name, tensor in inputs._asdict().items() if tensor is not None and name != "value"}
    gradients = torch.autograd.grad(score, list(named.values()), grad_score, retain_graph=True)
    return {f"grad_{name}": gradient for name, gradient in zip(named, gradients, strict=True)}
