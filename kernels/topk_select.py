"""The k memory rows of largest score of each query, exact: two passes over the memory, no affinity in memory.

The mathematics and the symbols are in README.md.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import choose_splits, topk_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import length_of, row_at, rows_of_part
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import factor_of_rows, norms_of_queries, raw_scores
from stm_fast.kernels.tiles import ceil_div

BUCKETS = 4  # at least this many for each of the k rows, so that few rows beyond the k best reach the threshold
ROOM = 4  # for the candidates of a query, in multiples of k
MOST_CANDIDATES = 2**24  # in memory at a time where they do not fit into that room: 64 MiB of scores
MARGIN = 2.0**-20  # relative, below the threshold: two kernels may round the same score differently
ABSENT = 2**31 - 1  # row index of an empty candidate, which sorts after all others


class Selected(NamedTuple):
    """The rows of each query, the largest score first and the lower row first among equal scores."""

    rows: Tensor  # [B, M, k] int64, -1 where fewer rows count
    scores: Tensor  # [B, M, k] float32, -inf there


def select(problem: Problem, count: int) -> Selected:
    """The `count` rows of largest score, 0 < count < N; waits for the device."""
    problem = problem.of_scores
    maxima, launch = plan_maxima(problem, count)
    launch.run()
    lower_bound = maxima.topk(count, dim=-1).values[..., -1]  # [B, M]
    threshold = lower_bound - MARGIN * lower_bound.abs()
    return _select_above(problem, threshold, count, min(ROOM * count, problem.key.shape[1]))


def plan_maxima(problem: Problem, count: int) -> tuple[Tensor, Launch]:
    """The largest score of every bucket of rows [B, M, buckets] float32, and the launch that fills it."""
    batch, queries = problem.value.shape[0], problem.query.shape[1]
    config, splits = topk_config(problem.choice), _splits(problem, count)
    maxima = problem.value.new_empty(batch, queries, splits * config.block_n, dtype=torch.float32)
    return maxima, _launch(problem, splits, maxima=maxima)


def plan_candidates(
    problem: Problem, threshold: Tensor, count: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Launch]:
    """Scores and rows [B, M, capacity] of what is not below threshold [B, M], its number [B, M], and the launch.

    In no order; the number counts those too that found no room.
    """
    shape = (*threshold.shape, capacity)
    scores = threshold.new_full(shape, -torch.inf)
    rows = threshold.new_full(shape, ABSENT, dtype=torch.int32)
    found = threshold.new_zeros(threshold.shape, dtype=torch.int32)
    outputs = {"threshold": threshold.contiguous(), "scores": scores, "rows": rows, "found": found}
    return scores, rows, found, _launch(problem, _splits(problem, count), capacity=capacity, **outputs)


def _select_above(problem: Problem, threshold: Tensor, count: int, capacity: int) -> Selected:
    """The best of the rows at or above the threshold: exact where these are at least `count`, and made so where not."""
    scores, rows, found, launch = plan_candidates(problem, threshold, count, capacity)
    launch.run()
    if found.numel() == 0:
        return best(scores, rows, count)
    expected = count if problem.lengths is None else problem.lengths.clamp(max=count)[:, None]
    most, too_few = torch.stack((found.max(), (found < expected).any().int())).tolist()
    if most > capacity:
        block = max(1, MOST_CANDIDATES // (most * threshold.shape[0]))
        blocks = [slice(first, first + block) for first in range(0, threshold.shape[1], block)]
        parts = [_select_above(_of_queries(problem, part), threshold[:, part], count, most) for part in blocks]
        return Selected(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))
    if too_few:
        # the second pass rounded by more than the margin, or a bound is not finite: every row is a candidate
        return _select_above(problem, torch.full_like(threshold, -torch.inf), count, capacity)
    return best(scores, rows, count)


def best(scores: Tensor, rows: Tensor, count: int) -> Selected:
    """The `count` best of the candidates [B, M, capacity], whatever order they come in."""
    rows, by_row = rows.sort(dim=-1)
    scores, by_score = scores.gather(-1, by_row).sort(dim=-1, descending=True, stable=True)
    rows, scores = rows.gather(-1, by_score)[..., :count].long(), scores[..., :count]
    return Selected(rows.masked_fill(rows == ABSENT, -1), scores)


def _of_queries(problem: Problem, part: slice) -> Problem:
    """The same problem for some of its queries."""
    selection = None if problem.selection is None else problem.selection[:, part]
    norms = None if problem.norms is None else problem.norms[:, part]
    return problem._replace(query=problem.query[:, part], selection=selection, norms=norms)


def _splits(problem: Problem, count: int) -> int:
    """Into how many parts to split the memory: enough for the processors and for the buckets."""
    config = topk_config(problem.choice)
    tiles = ceil_div(problem.query.shape[1], config.block_m) * problem.value.shape[0]
    blocks = ceil_div(problem.key.shape[1], config.block_n)
    return min(blocks, max(choose_splits(problem.target, tiles, blocks), ceil_div(BUCKETS * count, config.block_n)))


def _launch(problem: Problem, splits: int, capacity: int = 0, **tensors: Tensor) -> Launch:
    """The launch that fills the maxima, or the candidates, of which the kernel takes the tensors by name."""
    config = topk_config(problem.choice)
    absent = dict.fromkeys(("maxima", "threshold", "scores", "rows", "found"))
    arguments = {**problem.score_arguments(), **absent, **tensors, "splits": splits, "capacity": capacity}
    grid = (ceil_div(problem.query.shape[1], config.block_m), splits, problem.value.shape[0])
    fine = problem.arithmetic == "half" and problem.selection is not None
    return Launch.of(_topk_kernel, grid, config, **arguments, FINE=fine)


@triton.jit
def _topk_kernel(
    operands,
    maxima,
    threshold,
    scores,
    rows,
    found,
    strides,
    M,
    N,
    splits,
    capacity,
    score_factor,
    FORM: tl.constexpr,
    TILE: tl.constexpr,
    FINE: tl.constexpr,
):
    """One tile of queries and one part of the memory: the maxima of its buckets, or its rows above a threshold."""
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    part = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    first_query = tl.program_id(0).to(tl.int64) * BLOCK_M
    start, end = rows_of_part(part, splits, length_of(operands.lengths, b, N), BLOCK_N)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid_m = m < M - first_query
    row_of_query = b * M + first_query + m
    norms = norms_of_queries(operands, strides, b, first_query, valid_m, TILE)
    key = row_at(operands.key, strides.key, b, start)
    if threshold is None:
        largest = tl.full((BLOCK_M, BLOCK_N), -float("inf"), tl.float32)
    else:
        threshold_tile = tl.load(threshold + row_of_query, mask=valid_m, other=0.0)

    for first in range(start, end, BLOCK_N):
        valid_n = n < end - first
        raw = raw_scores(operands, strides, b, first_query, key, norms, valid_m, valid_n, FORM, TILE, FINE)
        factor = factor_of_rows(operands, strides, score_factor, b, first, valid_n, TILE)
        score = tl.where(valid_n[None, :], raw * factor, -float("inf"))
        if threshold is None:
            largest = tl.maximum(largest, score)
        else:
            # NaN is not below any threshold: it is chosen, and seen
            hit = valid_m[:, None] & valid_n[None, :] & ~(score < threshold_tile[:, None])
            hits = tl.sum(hit.to(tl.int32), 1)
            if tl.max(hits, 0) > 0:
                place = tl.atomic_add(found + row_of_query, hits, mask=valid_m & (hits > 0), sem="relaxed")
                place = place[:, None] + tl.cumsum(hit.to(tl.int32), 1) - 1
                offsets = row_of_query[:, None] * capacity + place
                stored = hit & (place < capacity)
                tl.store(scores + offsets, score, mask=stored)
                tl.store(rows + offsets, tl.broadcast_to((first + n)[None, :], (BLOCK_M, BLOCK_N)), mask=stored)
        key += BLOCK_N * strides.key[1]

    if threshold is None:
        offsets = (row_of_query * splits + part)[:, None] * BLOCK_N + n[None, :]
        tl.store(maxima + offsets, largest, mask=valid_m[:, None])
