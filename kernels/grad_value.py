"""The gradient of the values: dV = P^T dO, a block of memory rows a program, over all queries."""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import value_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import raw_scores, softmax_weights


def plan_grad_value(problem: Problem, grad_out: Tensor, lse: Tensor, totals: Tensor | None) -> tuple[Tensor, Launch]:
    """The gradient [B, N, Cv] of the values, and the launch that fills it.

    lse and totals (or None): [B, M] float32, contiguous.
    """
    batch, rows, value_dim = problem.value.shape
    config = value_config(problem.choice)
    grad_value = problem.value.new_empty(problem.value.shape)
    arguments = {
        **problem.score_arguments(),
        "lse": lse,
        "totals": totals,
        "grad_out": grad_out,
        "grad_value": grad_value,
        "CV": value_dim,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_V": config.block_v,
    }
    grid = (triton.cdiv(rows, config.block_n), triton.cdiv(value_dim, config.block_v), batch)
    return grad_value, Launch(_grad_value_kernel, grid, arguments, config)


@triton.jit
def _grad_value_kernel(
    query,
    key,
    shrinkage,
    selection,
    lengths,
    norms,
    lse,
    totals,
    grad_out,
    grad_value,
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
    CV: tl.constexpr,
    L2: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    b = tl.program_id(2).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    length = N
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    valid_n = n < length - start
    query += b * stride_query_b
    key += b * stride_key_b + start * stride_key_n
    grad_out += b * M * CV
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

    accumulator = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
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
        weight = softmax_weights(raw, factor, lse_tile, total_tile, valid_m[:, None] & valid_n[None, :])
        grad_tile = tl.load(
            grad_out + m[:, None] * CV + v[None, :],
            mask=valid_m[:, None] & (v < CV)[None, :],
            other=0.0,
        )
        weight = tl.trans(weight.to(grad_tile.dtype))  # [BLOCK_N, BLOCK_M]
        accumulator = tl.dot(weight, grad_tile, accumulator, input_precision=PRECISION)
        query += BLOCK_M * stride_query_m
        grad_out += BLOCK_M * CV
        if selection is not None:
            selection += BLOCK_M * stride_selection_m

    # rows that do not count have gradient 0
    row = b * N + start + n
    tl.store(
        grad_value + row[:, None] * CV + v[None, :],
        accumulator.to(grad_value.dtype.element_ty),
        mask=(start + n < N)[:, None] & (v < CV)[None, :],
    )
