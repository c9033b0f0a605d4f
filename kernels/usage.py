"""The usage of a memory row: its softmax weights summed over all queries, in one order."""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import topk_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import length_of, load_numbers, row_at
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.row_totals import row_totals
from stm_fast.kernels.scores import factor_of_rows, norms_of_queries, raw_scores, softmax_weights
from stm_fast.kernels.tiles import ceil_div


def usage(problem: Problem, lse: Tensor) -> Tensor:
    """usage [B, N] float32, from the lse [B, M] of the read; 0 for rows that do not count."""
    batch, problem = problem.value.shape[0], problem.of_scores
    lse = lse[: problem.value.shape[0]]
    result, launch = plan_usage(problem, lse, row_totals(problem, lse))
    launch.run()
    return result.expand(batch, -1).contiguous()


def plan_usage(problem: Problem, lse: Tensor, totals: Tensor | None) -> tuple[Tensor, Launch]:
    """The usage [B, N], and the launch that fills it; lse and totals (or None): [B, M] float32, contiguous."""
    batch, rows = problem.value.shape[:2]
    config = topk_config(problem.choice)
    result = lse.new_empty(batch, rows)
    grid = (ceil_div(rows, config.block_n), 1, batch)
    arguments = {**problem.score_arguments(), "lse": lse, "totals": totals, "usage": result}
    return result, Launch.of(_usage_kernel, grid, config, **arguments)


@triton.jit
def _usage_kernel(operands, lse, totals, usage, strides, M, N, score_factor, FORM: tl.constexpr, TILE: tl.constexpr):
    BLOCK_N: tl.constexpr = TILE.block_n
    b = tl.program_id(2).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    length = length_of(operands.lengths, b, N)
    m, n = tl.arange(0, TILE.block_m), tl.arange(0, BLOCK_N)
    valid_n = n < length - start
    factor = factor_of_rows(operands, strides, score_factor, b, start, valid_n, TILE)
    key = row_at(operands.key, strides.key, b, start)
    total = tl.zeros((BLOCK_N,), tl.float32)
    queries = tl.where(start < length, M, 0)
    for first in range(0, queries, TILE.block_m):
        valid_m = m < M - first
        norms = norms_of_queries(operands, strides, b, first, valid_m, TILE)
        raw = raw_scores(operands, strides, b, first, key, norms, valid_m, valid_n, FORM, TILE)
        row = b * M + first + m
        lse_tile, total_tile = load_numbers(lse, row, valid_m), load_numbers(totals, row, valid_m, 1.0)
        weight = softmax_weights(raw, factor, lse_tile, total_tile, valid_m, valid_n, FORM.base_2)
        total += tl.sum(weight, 0)
    tl.store(usage + b * N + start + n, total, mask=start + n < N)
