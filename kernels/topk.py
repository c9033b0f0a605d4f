"""The exact top-k memory read: a softmax over the k rows of largest score of each query."""

from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.kernels.problem import Problem
from stm_fast.kernels.topk_select import select
from stm_fast.kernels.weighted_sum import lists_of_memory_rows, lists_of_queries, weighted_sum


class SparseAffinity(NamedTuple):
    """The k entries of each query's affinity."""

    rows: Tensor  # [B, M, k] int64, -1 where fewer rows count
    weight: Tensor  # [B, M, k] float32, P_ij, 0 there
    lse: Tensor  # [B, M] float32, -inf where no row counts


def sparse_affinity(problem: Problem, count: int) -> SparseAffinity:
    """The affinity of the `count` best rows of each query, 0 < count < N; waits for the device."""
    rows, scores = select(problem, count)
    largest = scores[..., :1]  # [B, M, 1]
    largest = largest.masked_fill(largest == -torch.inf, 0)
    weight = (scores - largest).exp()
    total = weight.sum(-1, keepdim=True)  # [B, M, 1]
    lse = (largest + total.log()).squeeze(-1)  # -inf where total is 0
    weight = weight / total.masked_fill(total == 0, 1)
    batch = problem.value.shape[0]
    return SparseAffinity(rows.expand(batch, -1, -1), weight.expand(batch, -1, -1), lse.expand(batch, -1).contiguous())


def topk_forward(problem: Problem, count: int, with_usage: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """out [B, M, Cv] in the dtype of value, lse [B, M] float32, and usage [B, N] float32 where asked for."""
    affinity = sparse_affinity(problem, count)
    out = weighted_sum(lists_of_queries(affinity.rows), affinity.weight, problem.value, problem.value.dtype)
    return out, affinity.lse, _usage(problem, affinity) if with_usage else None


def _usage(problem: Problem, affinity: SparseAffinity) -> Tensor:
    batch, rows = problem.value.shape[:2]
    lists = lists_of_memory_rows(affinity.rows, batch, rows)
    return weighted_sum(lists, affinity.weight, ones_like_queries(affinity.rows)).squeeze(-1)


def ones_like_queries(rows: Tensor) -> Tensor:
    """A one for each query [B, M, 1], which makes a weighted sum a sum of weights."""
    return torch.ones((), device=rows.device).expand(*rows.shape[:2], 1)
