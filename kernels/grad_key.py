"""The gradients of keys and shrinkage: a block of memory rows a program, over all queries.

Where the key is shared by the objects, their gradients are summed one after the other: no atomics, always one order.
"""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import backward_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import grad_weights, raw_scores, softmax_weights


def plan_grad_key(
    problem: Problem, grad_out: Tensor, lse: Tensor, totals: Tensor | None, delta: Tensor
) -> tuple[Tensor, Tensor | None, Launch]:
    """The gradient [Bk, N, Ck] of the keys, that of the shrinkage of each object [B, N], and the launch.

    lse, totals (or None) and delta: [B, M] float32, contiguous.
    """
    batch, rows = problem.value.shape[:2]
    config = backward_config(problem.choice)
    grad_key = problem.key.new_empty(problem.key.shape)
    shrinkage = problem.shrinkage
    grad_shrinkage = None if shrinkage is None else shrinkage.new_empty(batch, rows)
    arguments = {
        **problem.score_arguments(),
        **problem.value_arguments(),
        "lse": lse,
        "totals": totals,
        "delta": delta,
        "grad_out": grad_out,
        "grad_key": grad_key,
        "grad_shrinkage": grad_shrinkage,
        "objects": batch // max(1, problem.key.shape[0]),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_C": config.block_c,
        "BLOCK_V": config.block_v,
    }
    key_programs = triton.cdiv(problem.key.shape[2], config.block_c)
    grid = (triton.cdiv(rows, config.block_n), key_programs, problem.key.shape[0])
    return grad_key, grad_shrinkage, Launch(_grad_key_kernel, grid, arguments, config)


@triton.jit
def _grad_key_kernel(
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
    grad_key,
    grad_shrinkage,
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
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)  # sum_i G_ij (e q)_i
    # sum_i G_ij e_i, which multiplies the key; without selection a number for each row
    mass = tl.zeros((BLOCK_N, BLOCK_C if selection is not None else 1), tl.float32)

    for i in range(objects):
        b = tl.program_id(2).to(tl.int64) + i
        length = N
        if lengths is not None:
            length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
        valid_n = n < length - start
        key_rows = key + b * stride_key_b + start * stride_key_n
        value_rows = value + b * stride_value_b + start * stride_value_n
        factor = score_factor
        if shrinkage is not None:
            shrinkage_rows = shrinkage + b * stride_shrinkage_b + start * stride_shrinkage_n
            factor = (tl.load(shrinkage_rows + n * stride_shrinkage_n, mask=valid_n, other=0.0) * score_factor)[None, :]
        grad_factor = tl.zeros((BLOCK_N,), tl.float32)
        query_rows = query + b * stride_query_b
        grad_rows = grad_out + b * M * CV
        selection_rows = None
        if selection is not None:
            selection_rows = selection + b * stride_selection_b
        queries = tl.where(start < length, M, 0)
        for first in range(0, queries, BLOCK_M):
            valid_m = m < M - first
            norms_tile = None
            if norms is not None:
                norms_tile = tl.load(norms + b * stride_norms_b + first + m, mask=valid_m, other=0.0)
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
            lse_tile = tl.load(lse + b * M + first + m, mask=valid_m, other=0.0)
            delta_tile = tl.load(delta + b * M + first + m, mask=valid_m, other=0.0)
            total_tile = None
            if totals is not None:
                total_tile = tl.load(totals + b * M + first + m, mask=valid_m, other=1.0)
            weight = softmax_weights(raw, factor, lse_tile, total_tile, valid_m[:, None] & valid_n[None, :])
            grad_score = weight * (grad_weight - delta_tile[:, None])  # dS [BLOCK_M, BLOCK_N]
            grad_factor += tl.sum(grad_score * raw, 0)
            grad_raw = (grad_score * factor).to(query.dtype.element_ty)  # G
            if L2 and selection is None:
                mass += tl.sum(grad_raw.to(tl.float32), 0)[:, None]
            grad_raw = tl.trans(grad_raw)  # [BLOCK_N, BLOCK_M]
            mask = valid_m[:, None] & (c < CK)[None, :]
            offsets = m[:, None] * stride_query_m + c[None, :] * stride_query_c
            query_tile = tl.load(query_rows + offsets, mask=mask, other=0.0)
            if selection is not None:
                offsets = m[:, None] * stride_selection_m + c[None, :] * stride_selection_c
                weights = tl.load(selection_rows + offsets, mask=mask, other=0.0)
                query_tile = (query_tile * weights).to(query_tile.dtype)
                mass = tl.dot(grad_raw, weights.to(query_tile.dtype), mass, input_precision=PRECISION)
            grad = tl.dot(grad_raw, query_tile, grad, input_precision=PRECISION)
            query_rows += BLOCK_M * stride_query_m
            grad_rows += BLOCK_M * CV
            if selection is not None:
                selection_rows += BLOCK_M * stride_selection_m
        if shrinkage is not None and tl.program_id(1) == 0:
            # S = score_factor * shrinkage * raw
            tl.store(grad_shrinkage + b * N + start + n, grad_factor * score_factor, mask=start + n < N)

    b = tl.program_id(2).to(tl.int64)
    mask = (start + n < N)[:, None] & (c < CK)[None, :]
    if L2:
        offsets = (start + n)[:, None] * stride_key_n + c[None, :] * stride_key_c
        key_tile = tl.load(key + b * stride_key_b + offsets, mask=mask, other=0.0).to(tl.float32)
        # a row that does not count may hold NaN, and has no mass
        grad -= tl.where(mass != 0, key_tile * mass, 0.0)
    row = b * N + start + n
    tl.store(grad_key + row[:, None] * CK + c[None, :], grad.to(grad_key.dtype.element_ty), mask=mask)
