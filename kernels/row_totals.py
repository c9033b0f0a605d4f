"""sum_j exp(S_ij - lse_i): 1, but for the rounding of lse.

lse is stored in float32: where scores are in the hundreds its last bit is 1e-5 of every weight exp(S - lse), far more
than the other roundings of a float32 read. The kernels that make the affinity again divide by these sums.
"""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import topk_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import length_of, row_at
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import factor_of_rows, norms_of_queries, raw_scores, softmax_weights
from stm_fast.kernels.tiles import ceil_div


def row_totals(problem: Problem, lse: Tensor) -> Tensor | None:
    """The sums [B, M] float32; None for 16-bit inputs, which round more than lse does."""
    if problem.arithmetic == "half":
        return None
    totals, launch = plan_row_totals(problem, lse)
    launch.run()
    return totals


def plan_row_totals(problem: Problem, lse: Tensor) -> tuple[Tensor, Launch]:
    """The sums [B, M], and the launch that fills them; lse [B, M] float32, contiguous."""
    config = topk_config(problem.choice)
    totals = lse.new_empty(lse.shape)
    grid = (ceil_div(lse.shape[1], config.block_m), 1, lse.shape[0])
    arguments = {**problem.score_arguments(), "lse": lse, "totals": totals}
    return totals, Launch.of(_row_totals_kernel, grid, config, **arguments)


@triton.jit
def _row_totals_kernel(operands, lse, totals, strides, M, N, score_factor, FORM: tl.constexpr, TILE: tl.constexpr):
    BLOCK_M: tl.constexpr = TILE.block_m
    b = tl.program_id(2).to(tl.int64)
    first_query = tl.program_id(0).to(tl.int64) * BLOCK_M
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, TILE.block_n)
    valid_m = m < M - first_query
    row = b * M + first_query + m
    lse_tile = tl.load(lse + row, mask=valid_m, other=0.0)
    norms = norms_of_queries(operands, strides, b, first_query, valid_m, TILE)
    length = length_of(operands.lengths, b, N)
    key = row_at(operands.key, strides.key, b, 0)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, length, TILE.block_n):
        valid_n = n < length - first
        raw = raw_scores(operands, strides, b, first_query, key, norms, valid_m, valid_n, FORM, TILE)
        factor = factor_of_rows(operands, strides, score_factor, b, first, valid_n, TILE)
        total += tl.sum(softmax_weights(raw, factor, lse_tile, None, valid_m, valid_n, FORM.base_2), 1)
        key += TILE.block_n * strides.key[1]
    # a query without any row has no weights to divide
    tl.store(totals + row, tl.where(total == 0, 1.0, total), mask=valid_m)
