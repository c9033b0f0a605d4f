"""The exact top-k memory read: a softmax over the k rows of largest score of each query."""

from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.kernels.problem import Problem
from stm_fast.kernels.topk_select import ABSENT, select
from stm_fast.kernels.weighted_sum import lists_of_memory_rows, lists_of_queries, weighted_sum


class SparseAffinity(NamedTuple):
    """The k entries of each query's affinity."""

    rows: Tensor  # [B, M, k] int64, -1 where fewer rows count
    weight: Tensor  # [B, M, k] float32, P_ij, 0 there
    lse: Tensor  # [B, M] float32, -inf where no row counts

    def by_row(self) -> tuple[Tensor, Tensor]:
        """Copies of the weights and the rows, ascending by row, -1 last."""
        rows, order = self.rows.masked_fill(self.rows < 0, ABSENT).sort(dim=-1)
        return self.weight.gather(-1, order), rows.masked_fill(rows == ABSENT, -1)


class TopKRead(NamedTuple):
    """The results of a top-k read."""

    out: Tensor  # [B, M, Cv], dtype of value
    affinity: SparseAffinity
    usage: Tensor | None  # [B, N] float32


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


def topk_forward(problem: Problem, count: int, with_usage: bool) -> TopKRead:
    """Reads the values of the `count` best rows of each query, and if requested sums their weights by row."""
    affinity = sparse_affinity(problem, count)
    out = read_rows(affinity.weight, affinity.rows, problem.value)
    return TopKRead(out, affinity, _usage(problem, affinity) if with_usage else None)


def read_rows(weight: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    """sum_k weight_ik value[rows_ik] [B, M, Cv]; weight float32 and rows int64, [B or 1, M, k]."""
    batch = value.shape[0]
    return weighted_sum(lists_of_queries(rows.expand(batch, -1, -1)), weight.expand(batch, -1, -1), value, value.dtype)


def _usage(problem: Problem, affinity: SparseAffinity) -> Tensor:
    batch, rows = problem.value.shape[:2]
    objects = problem.of_scores.value.shape[0]
    listed = affinity.rows[:objects]
    lists = lists_of_memory_rows(listed, objects, rows)
    usage = weighted_sum(lists, affinity.weight[:objects], ones_like_queries(listed)).squeeze(-1)
    return usage.expand(batch, -1).contiguous()


def ones_like_queries(rows: Tensor) -> Tensor:
    """A one for each query [B, M, 1], which makes a weighted sum a sum of weights."""
    return torch.ones((), device=rows.device).expand(*rows.shape[:2], 1)
