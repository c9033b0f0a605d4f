"""The gradient of the keys of a block of memory rows: dK = G^T q, and its second term for the l2 score.

Where the key is shared by the objects, their gradients are summed one after the other: no atomics, always one order.
"""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import grad_key_config
from stm_fast.kernels.grad_scores import Block
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem, strides


def plan_grad_key(problem: Problem, block: Block, grad_key: Tensor) -> Launch:
    """The launch that fills the rows of the block in the gradient [Bk, N, Ck] of the keys."""
    owners, rows, key_dim = problem.key.shape
    config = grad_key_config(problem.choice)
    batch = problem.value.shape[0]
    selection = None if problem.selection is None else problem.selection.expand(batch, -1, -1)
    arguments = {
        "query": problem.query,
        "key": problem.key,
        "selection": problem.selection,
        "grad_raw": block.grad_raw,
        "grad_key": grad_key,
        "objects": batch // max(1, owners),
        "first": block.first,
        "width": block.grad_raw.shape[2],
        "padded": block.grad_raw.shape[1],
        "M": problem.query.shape[1],
        "N": rows,
        **strides("query", problem.query.expand(batch, -1, -1), "bmc"),
        **strides("key", problem.key, "bnc"),
        **strides("selection", selection, "bmc"),
        "CK": key_dim,
        "L2": problem.l2,
        "PRECISION": problem.precision,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_C": config.block_c,
    }
    grid = (triton.cdiv(key_dim, config.block_c), triton.cdiv(block.rows, config.block_n), owners)
    return Launch(_grad_key_kernel, grid, arguments, config)


@triton.jit
def _grad_key_kernel(
    query,
    key,
    selection,
    grad_raw,
    grad_key,
    objects,
    first,
    width,
    padded,
    M,
    N,
    stride_query_b,
    stride_query_m,
    stride_query_c,
    stride_key_b,
    stride_key_n,
    stride_key_c,
    stride_selection_b,
    stride_selection_m,
    stride_selection_c,
    CK: tl.constexpr,
    L2: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    owner = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_N
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)  # sum_i G_ij (e q)_i
    # sum_i G_ij e_i, which multiplies the key; without selection a number for each row
    mass = tl.zeros((BLOCK_N, BLOCK_C if selection is not None else 1), tl.float32)

    for i in range(objects):
        b = owner + i
        grad_rows = grad_raw + b * padded * width + column
        query_rows = query + b * stride_query_b
        selection_rows = None
        if selection is not None:
            selection_rows = selection + b * stride_selection_b
        for first_query in range(0, M, BLOCK_M):
            grad_tile = tl.load(grad_rows + m[None, :] * width + n[:, None])  # [BLOCK_N, BLOCK_M], transposed
            mask = (m < M - first_query)[:, None]
            if CK % BLOCK_C != 0:
                mask = mask & (c < CK)[None, :]
            offsets = m[:, None] * stride_query_m + c[None, :] * stride_query_c
            query_tile = tl.load(query_rows + offsets, mask=mask, other=0.0)
            if selection is not None:
                offsets = m[:, None] * stride_selection_m + c[None, :] * stride_selection_c
                weights = tl.load(selection_rows + offsets, mask=mask, other=0.0)
                query_tile = (query_tile * weights).to(query_tile.dtype)
                selection_tile = weights.to(query_tile.dtype)
                mass = tl.dot(grad_tile, selection_tile, mass, input_precision=PRECISION)
                selection_rows += BLOCK_M * stride_selection_m
            elif L2:
                mass += tl.sum(grad_tile.to(tl.float32), 1)[:, None]
            grad = tl.dot(grad_tile, query_tile, grad, input_precision=PRECISION)
            grad_rows += BLOCK_M * width
            query_rows += BLOCK_M * stride_query_m

    row = first + column + n
    mask = (row < N)[:, None] & (c < CK)[None, :]
    if L2:
        offsets = row[:, None] * stride_key_n + c[None, :] * stride_key_c
        key_tile = tl.load(key + owner * stride_key_b + offsets, mask=mask, other=0.0).to(tl.float32)
        # a row that does not count may hold NaN, and has no mass
        grad -= tl.where(mass != 0, key_tile * mass, 0.0)
    tl.store(grad_key + (owner * N + row)[:, None] * CK + c[None, :], grad.to(grad_key.dtype.element_ty), mask=mask)
