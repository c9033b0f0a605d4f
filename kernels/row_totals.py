"""sum_j exp(S_ij - lse_i): 1, but for the rounding of lse.

lse is stored in float32: where scores are in the hundreds its last bit is 1e-5 of every weight exp(S - lse), far more
than the other roundings of a float32 read. The kernels that make the affinity again divide by these sums.
"""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import topk_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import raw_scores, softmax_weights


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
    arguments = {
        **problem.score_arguments(),
        "lse": lse,
        "totals": totals,
        "BASE_2": problem.base_2,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    grid = (triton.cdiv(lse.shape[1], config.block_m), 1, lse.shape[0])
    return totals, Launch(_row_totals_kernel, grid, arguments, config)


@triton.jit
def _row_totals_kernel(
    query,
    key,
    shrinkage,
    selection,
    lengths,
    norms,
    lse,
    totals,
    M,
    N,
    score_factor,
    stride_query_b,
    stride_query_m,
    stride_query_c,
    stride_key_b,
    stride_key_n,
    stride_key_c,
    stride_shrinkage_b,
    stride_shrinkage_n,
    stride_selection_b,
    stride_selection_m,
    stride_selection_c,
    stride_norms_b,
    CK: tl.constexpr,
    L2: tl.constexpr,
    PRECISION: tl.constexpr,
    BASE_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    b = tl.program_id(2).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    length = N
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid_m = m < M - start
    query += b * stride_query_b + start * stride_query_m
    key += b * stride_key_b
    if selection is not None:
        selection += b * stride_selection_b + start * stride_selection_m
    if shrinkage is not None:
        shrinkage += b * stride_shrinkage_b
    lse_tile = tl.load(lse + b * M + start + m, mask=valid_m, other=0.0)
    norms_tile = None
    if norms is not None:
        norms_tile = tl.load(norms + b * stride_norms_b + start + m, mask=valid_m, other=0.0)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, length, BLOCK_N):
        valid_n = n < length - first
        raw = raw_scores(
            query,
            selection,
            norms_tile,
            key,
            m,
            n,
            valid_m,
            valid_n,
            stride_query_m,
            stride_query_c,
            stride_selection_m,
            stride_selection_c,
            stride_key_n,
            stride_key_c,
            CK,
            L2,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
        factor = score_factor
        if shrinkage is not None:
            factor = (tl.load(shrinkage + n * stride_shrinkage_n, mask=valid_n, other=0.0) * score_factor)[None, :]
            shrinkage += BLOCK_N * stride_shrinkage_n
        valid = valid_m[:, None] & valid_n[None, :]
        weight = softmax_weights(raw, factor, lse_tile, None, valid, BASE_2)
        total += tl.sum(weight, 1)
        key += BLOCK_N * stride_key_n
    # a query without any row has no weights to divide
    tl.store(totals + b * M + start + m, tl.where(total == 0, 1.0, total), mask=valid_m)
