"""The usage of a memory row: its softmax weights summed over all queries, in one order."""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import topk_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.row_totals import row_totals
from stm_fast.kernels.scores import raw_scores, softmax_weights


def usage(problem: Problem, lse: Tensor) -> Tensor:
    """usage [B, N] float32, from the lse [B, M] of the read; 0 for rows that do not count."""
    result, launch = plan_usage(problem, lse, row_totals(problem, lse))
    launch.run()
    return result


def plan_usage(problem: Problem, lse: Tensor, totals: Tensor | None) -> tuple[Tensor, Launch]:
    """The usage [B, N], and the launch that fills it; lse and totals (or None): [B, M] float32, contiguous."""
    batch, rows = problem.value.shape[:2]
    config = topk_config(problem.choice)
    result = lse.new_empty(batch, rows)
    arguments = {
        **problem.score_arguments(),
        "lse": lse,
        "totals": totals,
        "usage": result,
        "BASE_2": problem.base_2,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    return result, Launch(_usage_kernel, (triton.cdiv(rows, config.block_n), 1, batch), arguments, config)


@triton.jit
def _usage_kernel(
    query,
    key,
    shrinkage,
    selection,
    lengths,
    norms,
    lse,
    totals,
    usage,
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
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    length = N
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid_n = n < length - start
    query += b * stride_query_b
    key += b * stride_key_b + start * stride_key_n
    lse += b * M
    if totals is not None:
        totals += b * M
    if norms is not None:
        norms += b * stride_norms_b
    if selection is not None:
        selection += b * stride_selection_b
    factor = score_factor
    if shrinkage is not None:
        shrinkage += b * stride_shrinkage_b + start * stride_shrinkage_n
        factor = (tl.load(shrinkage + n * stride_shrinkage_n, mask=valid_n, other=0.0) * score_factor)[None, :]

    total = tl.zeros((BLOCK_N,), tl.float32)
    queries = tl.where(start < length, M, 0)
    for first in range(0, queries, BLOCK_M):
        valid_m = m < M - first
        norms_tile = None
        if norms is not None:
            norms_tile = tl.load(norms + first + m, mask=valid_m, other=0.0)
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
        lse_tile = tl.load(lse + first + m, mask=valid_m, other=0.0)
        total_tile = None
        if totals is not None:
            total_tile = tl.load(totals + first + m, mask=valid_m, other=1.0)
        valid = valid_m[:, None] & valid_n[None, :]
        weight = softmax_weights(raw, factor, lse_tile, total_tile, valid, BASE_2)
        total += tl.sum(weight, 0)
        query += BLOCK_M * stride_query_m
        if selection is not None:
            selection += BLOCK_M * stride_selection_m
    tl.store(usage + b * N + start + n, total, mask=start + n < N)
