"""The reads of the STM family as matrices: scores, top-k and weighted sums of [B, C, N] and [B, C, M] features."""

import math

import torch


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def weighted(score, value):
    """Values [B, C, N] weighted by the softmax over the memory of scores [B, N, M]: [B, C, M]."""
    return torch.einsum("bnm,bcn->bcm", score.softmax(1), value)


def only_largest(score, count):
    kept = score.topk(count, dim=1).indices
    return torch.full_like(score, -math.inf).scatter(1, kept, score.gather(1, kept))


def squared_distance(mk, qk, weight=None):
    """sum_c weight_ci (k_cj - q_ci)^2 of [B, C, N] and [B, C, M]: [B, N, M]."""
    square = (mk[:, :, :, None] - qk[:, :, None, :]).square()
    return (square if weight is None else square * weight[:, :, None, :]).sum(1)


def xmem_score(mk, ms, qk, qe):
    """XMem (Cheng and Schwing, ECCV 2022), equation 2, for features [B, C, ...]: [B, N, M]."""
    mk, qk = mk.flatten(2), qk.flatten(2)
    distance = squared_distance(mk, qk, None if qe is None else qe.flatten(2))
    if qe is None:
        # as published: without a selection the term of the query alone is left out
        distance = distance - qk.square().sum(1)[:, None, :]
    strength = 1 if ms is None else ms.flatten(2).mT
    return -strength * distance / math.sqrt(mk.shape[1])
