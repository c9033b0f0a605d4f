"""The gradients of the top-k memory read, by its k entries of each query; the rows are chosen again as in the forward.

The mathematics and the symbols are in README.md.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.kernels.backward import Gradients
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.similarity import channel_slopes, has_key_term, key_slopes
from stm_fast.kernels.topk import SparseAffinity, ones_like_queries, sparse_affinity
from stm_fast.kernels.weighted_sum import lists_of_memory_rows, weighted_sum

MOST_GATHERED = 2**24  # elements of gathered rows at a time: 64 MiB


class _QuerySide(NamedTuple):
    """What comes of each query and the rows that it reads, float32."""

    grad_raw: Tensor  # [B, M, k], G
    grad_shrinkage: Tensor  # [B, M, k], what each entry adds to the gradient of its row's shrinkage
    grad_query: Tensor  # [B, M, Ck]
    grad_selection: Tensor  # [B, M, Ck]


def topk_backward(problem: Problem, count: int, grad_out: Tensor, grad_lse: Tensor) -> Gradients:
    """The gradients of every input, from those of out [B, M, Cv] and lse [B, M]."""
    affinity = sparse_affinity(problem, count)
    blocks = [_query_side(problem, affinity, grad_out, grad_lse, block) for block in _query_blocks(problem, count)]
    found = _QuerySide(*(torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True)))
    lists = lists_of_memory_rows(affinity.rows, *problem.value.shape[:2])
    grad_shrinkage = weighted_sum(lists, found.grad_shrinkage, ones_like_queries(affinity.rows)).squeeze(-1)
    return Gradients(
        _reduced(found.grad_query, problem.query),
        _grad_key(problem, affinity, found.grad_raw),
        weighted_sum(lists, affinity.weight, grad_out, problem.value.dtype),
        None if problem.shrinkage is None else _reduced(grad_shrinkage, problem.shrinkage),
        None if problem.selection is None else _reduced(found.grad_selection, problem.selection),
    )


def read_rows_backward(grad_out: Tensor, weight: Tensor, rows: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the weights and the values of read_rows(), from that of its result [B, M, Cv]."""
    batch, memory_rows, width = value.shape
    listed = rows.expand(batch, -1, -1)
    blocks = _blocks(rows.shape[1], batch * rows.shape[2] * width)
    parts = [_grad_weight(value, listed[:, block], grad_out[:, block]) for block in blocks]
    lists = lists_of_memory_rows(listed, batch, memory_rows)
    grad_value = weighted_sum(lists, weight.expand(batch, -1, -1), grad_out, value.dtype)
    return _reduced(torch.cat(parts, dim=1), weight), grad_value


def _grad_weight(value: Tensor, rows: Tensor, grad_out: Tensor) -> Tensor:
    """dP [B, m, k] of the rows that each query reads, from the gradient of what it reads [B, m, Cv]."""
    return (_gathered(value, rows) * grad_out[:, :, None]).sum(-1)


def _query_blocks(problem: Problem, count: int) -> list[slice]:
    batch, _, value_dim = problem.value.shape
    queries, key_dim = problem.query.shape[1:]
    return _blocks(queries, batch * count * max(key_dim, value_dim))


def _blocks(queries: int, gathered: int) -> list[slice]:
    """Blocks of queries, of `gathered` elements each, that fit into MOST_GATHERED; one, empty, without any query."""
    size = max(1, MOST_GATHERED // max(1, gathered))
    return [slice(first, first + size) for first in range(0, max(1, queries), size)]


def _query_side(
    problem: Problem, affinity: SparseAffinity, grad_out: Tensor, grad_lse: Tensor, block: slice
) -> _QuerySide:
    rows, weight = affinity.rows[:, block], affinity.weight[:, block]  # [B, m, k]
    grad_weight = _grad_weight(problem.value, rows, grad_out[:, block])  # [B, m, k]
    # from the weights themselves, not from the rounded out: that is what the forward normalized
    delta = (weight * grad_weight).sum(-1, keepdim=True) - grad_lse[:, block, None]
    grad_score = weight * (grad_weight - delta)  # dS [B, m, k]
    grad_raw = problem.score_factor * grad_score
    if problem.shrinkage is not None:
        grad_raw = grad_raw * _gathered(problem.shrinkage[..., None], rows).squeeze(-1)

    key = _gathered(problem.key, rows)  # [B, m, k, Ck]
    query = problem.query[:, block, None].float()  # [Bq, m, 1, Ck]
    selection = torch.ones_like(query) if problem.selection is None else problem.selection[:, block, None]
    has_query_term = problem.norms is not None
    by_query, by_selection = channel_slopes(problem.similarity, has_query_term, query, key)  # [B, m, k, Ck]
    raw = (selection * by_selection).sum(-1)  # [B, m, k]
    grad_query = selection.squeeze(2) * (grad_raw[..., None] * by_query).sum(2)
    grad_selection = (grad_raw[..., None] * by_selection).sum(2)
    return _QuerySide(grad_raw, problem.score_factor * grad_score * raw, grad_query, grad_selection)


def _gathered(source: Tensor, rows: Tensor) -> Tensor:
    """source [B or 1, N, C] at rows [B, m, k]: [B, m, k, C] float32, 0 where the row is -1."""
    batch, queries, count = rows.shape
    width = source.shape[2]
    index = rows.clamp(min=0).reshape(batch, queries * count, 1).expand(-1, -1, width)
    found = source.expand(batch, -1, -1).gather(1, index).float().view(batch, queries, count, width)
    return found.masked_fill((rows < 0)[..., None], 0)


def _grad_key(problem: Problem, affinity: SparseAffinity, grad_raw: Tensor) -> Tensor:
    """dk_j = sum_i G_ij e_i q_i + f'(k_j) sum_i G_ij e_i, f the key term; over all objects of the key."""
    groups, rows, _ = problem.key.shape
    lists = lists_of_memory_rows(affinity.rows, groups, rows)
    query, selection = problem.query.float(), problem.selection
    weighted = query if selection is None else query * selection
    grad = weighted_sum(lists, grad_raw, _grouped(weighted, affinity.rows, groups))
    if has_key_term(problem.similarity):
        mass_source = ones_like_queries(affinity.rows) if selection is None else selection
        mass = weighted_sum(lists, grad_raw, _grouped(mass_source, affinity.rows, groups))
        # a row that does not count may hold NaN, and has no mass
        grad += torch.where(mass != 0, key_slopes(problem.similarity, problem.key) * mass, 0)
    return grad.to(problem.key.dtype)


def _grouped(source: Tensor, rows: Tensor, groups: int) -> Tensor:
    """source [B or 1, M, C] as the queries of each group [groups, B / groups * M, C]."""
    batch, queries, _ = rows.shape
    return source.expand(batch, -1, -1).reshape(groups, batch // max(1, groups) * queries, source.shape[2])


def _reduced(gradient: Tensor, owner: Tensor) -> Tensor:
    """The gradient [B, ...] summed over the objects that share the owner, in its dtype."""
    return gradient.sum_to_size(owner.shape).to(owner.dtype).contiguous()
