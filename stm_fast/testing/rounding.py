"""The exact memory read with every sum rounded once: what the order of summation alone does to a result."""

import torch
from torch import Tensor

from stm_fast.ops import reference
from stm_fast.ops.inputs import accumulation_dtype
from stm_fast.testing.cases import ReadCase, Tensors, read_inputs
from stm_fast.testing.criterion import Results


def rounded_once(case: ReadCase, doubles: Tensors, dtype: torch.dtype, upstream: Results, seed: int = 2) -> Results:
    """The read and its gradients in float64, as a fused engine forms them, each sum off by one rounding.

    A sum ``sum_c a_c b_c`` rounded once is off by eps * sum_c |a_c b_c|, with a random sign: eps of the accumulation
    dtype, and the terms all of one sign, since it is the terms that are rounded and not what they cancel to. The
    scores, the normalised sum of values, ``dP = dO V^T`` and ``delta = rowsum(dO * out)`` are such sums; `delta` is
    formed from `out` as stored, in `dtype`. The gradient of the scores is ``dS = P * (dP - delta + dlse)``.

    Args:
        doubles: the inputs in float64; leaves of a graph where `upstream` is not empty.
        dtype: that of the result under test.
        upstream: the gradients of out and lse, float64; empty for a read without gradients.
    """
    generator = torch.Generator().manual_seed(seed)

    def off_by_one_rounding(total: Tensor, size: Tensor) -> Tensor:
        sign = torch.randint(0, 2, total.shape, generator=generator).to(total) * 2 - 1
        return total + torch.finfo(accumulation_dtype(dtype)).eps * sign * size

    inputs = read_inputs(case, doubles)
    one_sign = inputs._replace(query=inputs.query.abs(), key=-inputs.key.abs())
    score = reference.affinity_scores(inputs, torch.float64)  # [B, M, N]
    counted = score > -torch.inf
    if inputs.top_k:
        counted &= reference.largest_scores(score, inputs.top_k)
    size = reference.affinity_scores(one_sign, torch.float64).abs().masked_fill(~counted, 0)
    exact_score = score.detach().masked_fill(~counted, -torch.inf)
    affinity, lse = reference.softmax_and_lse(off_by_one_rounding(exact_score, size.detach()))  # [B, M, N], [B, M]
    value = reference.valid_rows(doubles.value.detach(), inputs)  # [B, N, Cv]
    out = off_by_one_rounding(affinity @ value, affinity @ value.abs()).to(dtype).double()  # [B, M, Cv]
    results = {"out": out, "lse": lse, "usage": affinity.sum(1)}
    if not upstream:
        return results
    grad_out = upstream["out"]
    grad_affinity = off_by_one_rounding(grad_out @ value.mT, grad_out.abs() @ value.mT.abs())  # [B, M, N]
    delta = off_by_one_rounding((grad_out * out).sum(-1), (grad_out * out).abs().sum(-1))  # [B, M]
    grad_score = affinity * (grad_affinity - (delta - upstream["lse"])[..., None])  # [B, M, N]
    named = {name: tensor for name, tensor in doubles._asdict().items() if tensor is not None and name != "value"}
    gradients = torch.autograd.grad(score, list(named.values()), grad_score)
    results |= {f"grad_{name}": gradient for name, gradient in zip(named, gradients, strict=True)}
    return results | {"grad_value": affinity.mT @ grad_out}
