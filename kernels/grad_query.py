"""The gradients of queries and selection: a block of queries a program, over the whole memory.

Where the query is shared by the objects, their gradients are summed one after the other: no atomics, always one order.
"""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import backward_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import grad_weights, raw_scores, softmax_weights


def plan_grad_query(
    problem: Problem, grad_out: Tensor, lse: Tensor, totals: Tensor | None, delta: Tensor
) -> tuple[Tensor, Tensor | None, Launch]:
    """The gradients [Bq, M, Ck] of queries and selection, and the launch that fills them.

    lse, totals (or None) and delta: [B, M] float32, contiguous.
    """
    batch = problem.value.shape[0]
    config = backward_config(problem.choice)
    grad_query = problem.query.new_empty(problem.query.shape)
    selection = problem.selection
    grad_selection = None if selection is None else selection.new_empty(selection.shape)
    arguments = {
        **problem.score_arguments(),
        **problem.value_arguments(),
        "lse": lse,
        "totals": totals,
        "delta": delta,
        "grad_out": grad_out,
        "grad_query": grad_query,
        "grad_selection": grad_selection,
        "objects": batch // max(1, problem.query.shape[0]),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_C": config.block_c,
        "BLOCK_V": config.block_v,
    }
    queries, key_dim = problem.query.shape[1:]
    key_programs = triton.cdiv(key_dim, config.block_c)
    grid = (triton.cdiv(queries, config.block_m), key_programs, problem.query.shape[0])
    return grad_query, grad_selection, Launch(_grad_query_kernel, grid, arguments, config)


@triton.jit
def _grad_query_kernel(
    query,
    key,
    value,
    shrinkage,
    selection,
    lengths,
    norms,
    lse,
    totals,
    delta,
    grad_out,
    grad_query,
    grad_selection,
    objects,
    M,
    N,
    score_factor,
    stride_query_b,
    stride_query_m,
    stride_query_c,
    stride_key_b,
    stride_key_n,
    stride_key_c,
    stride_value_b,
    stride_value_n,
    stride_value_c,
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
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_m = m < M - start
    grad = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)  # sum_j G_ij k_j
    if selection is not None:
        squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)  # sum_j G_ij k_j^2 / 2
    mass = tl.zeros((BLOCK_M,), tl.float32)  # sum_j G_ij

    for i in range(objects):
        b = tl.program_id(2).to(tl.int64) + i
        length = N
        if lengths is not None:
            length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
        query_rows = query + b * stride_query_b + start * stride_query_m
        grad_rows = grad_out + (b * M + start) * CV
        selection_rows = None
        if selection is not None:
            selection_rows = selection + b * stride_selection_b + start * stride_selection_m
        lse_tile = tl.load(lse + b * M + start + m, mask=valid_m, other=0.0)
        delta_tile = tl.load(delta + b * M + start + m, mask=valid_m, other=0.0)
        norms_tile = None
        if norms is not None:
            norms_tile = tl.load(norms + b * stride_norms_b + start + m, mask=valid_m, other=0.0)
        total_tile = None
        if totals is not None:
            total_tile = tl.load(totals + b * M + start + m, mask=valid_m, other=1.0)
        key_rows = key + b * stride_key_b
        value_rows = value + b * stride_value_b
        if shrinkage is not None:
            shrinkage_rows = shrinkage + b * stride_shrinkage_b
        for first in range(0, length, BLOCK_N):
            valid_n = n < length - first
            factor = score_factor
            if shrinkage is not None:
                factor = tl.load(shrinkage_rows + n * stride_shrinkage_n, mask=valid_n, other=0.0) * score_factor
                factor = factor[None, :]
                shrinkage_rows += BLOCK_N * stride_shrinkage_n
            raw = raw_scores(
                query_rows,
                selection_rows,
                norms_tile,
                key_rows,
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
            grad_weight = grad_weights(
                grad_rows,
                value_rows,
                m,
                n,
                valid_m,
                valid_n,
                stride_value_n,
                stride_value_c,
                CV,
                PRECISION,
                BLOCK_M,
                BLOCK_N,
                BLOCK_V,
            )
            weight = softmax_weights(raw, factor, lse_tile, total_tile, valid_m[:, None] & valid_n[None, :])
            grad_score = weight * (grad_weight - delta_tile[:, None])  # dS [BLOCK_M, BLOCK_N]
            grad_raw = (grad_score * factor).to(query.dtype.element_ty)  # G
            if norms is not None:
                mass += tl.sum(grad_raw.to(tl.float32), 1)
            mask = valid_n[:, None] & (c < CK)[None, :]
            key_tile = tl.load(
                key_rows + n[:, None] * stride_key_n + c[None, :] * stride_key_c, mask=mask, other=0.0
            )  # [BLOCK_N, BLOCK_C]
            grad = tl.dot(grad_raw, key_tile, grad, input_precision=PRECISION)
            if selection is not None:
                half_square = (0.5 * key_tile.to(tl.float32) * key_tile.to(tl.float32)).to(key_tile.dtype)
                squares = tl.dot(grad_raw, half_square, squares, input_precision=PRECISION)
            key_rows += BLOCK_N * stride_key_n
            value_rows += BLOCK_N * stride_value_n

    b = tl.program_id(2).to(tl.int64)
    mask = valid_m[:, None] & (c < CK)[None, :]
    grad_offsets = (b * M + start + m)[:, None] * CK + c[None, :]
    if norms is not None or selection is not None:
        offsets = (start + m)[:, None] * stride_query_m + c[None, :] * stride_query_c
        query_tile = tl.load(query + b * stride_query_b + offsets, mask=mask, other=0.0).to(tl.float32)
    if selection is not None:
        grad_weights_tile = query_tile * grad - squares
        if norms is not None:
            grad_weights_tile -= 0.5 * query_tile * query_tile * mass[:, None]
        tl.store(grad_selection + grad_offsets, grad_weights_tile, mask=mask)
    if norms is not None:
        grad -= query_tile * mass[:, None]
    if selection is not None:
        offsets = (start + m)[:, None] * stride_selection_m + c[None, :] * stride_selection_c
        grad *= tl.load(selection + b * stride_selection_b + offsets, mask=mask, other=0.0)
    tl.store(grad_query + grad_offsets, grad.to(grad_query.dtype.element_ty), mask=mask)
