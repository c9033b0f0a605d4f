"""The gradient of the keys of a block of memory rows: dK = G^T q, and the slope of the score's key term, if any.

Where the key is shared by the objects, their gradients are summed one after the other: no atomics, always one order.
"""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import grad_key_config
from stm_fast.kernels.grad_scores import Block
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import load_tile, row_at
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.similarity import key_slope
from stm_fast.kernels.tiles import ceil_div


def plan_grad_key(problem: Problem, block: Block, grad_key: Tensor) -> Launch:
    """The launch that fills the rows of the block in the gradient [Bk, N, Ck] of the keys."""
    owners, _, key_dim = problem.key.shape
    config = grad_key_config(problem.choice)
    objects = problem.value.shape[0] // max(1, owners)
    grid = (ceil_div(key_dim, config.block_c), ceil_div(block.rows, config.block_n), owners)
    tensors = {"grad_raw": block.grad_raw, "grad_key": grad_key}
    arguments = {**problem.product_arguments(), **tensors, "place": block.place, "objects": objects}
    return Launch.of(_grad_key_kernel, grid, config, **arguments)


@triton.jit
def _grad_key_kernel(
    operands, grad_raw, grad_key, strides, objects, place, M, N, FORM: tl.constexpr, TILE: tl.constexpr
):
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    BLOCK_C: tl.constexpr = TILE.block_c
    WEIGHTED: tl.constexpr = operands.selection is not None
    owner = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_N
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)  # sum_i G_ij (e q)_i
    # sum_i G_ij e_i, which multiplies the slope of the key term; without selection a number for each row
    mass = tl.zeros((BLOCK_N, BLOCK_C if WEIGHTED else 1), tl.float32)

    for i in range(objects):
        b = owner + i
        grad_rows = grad_raw + b * place.padded * place.width + column
        query = row_at(operands.query, strides.query, b, 0)
        selection = row_at(operands.selection, strides.selection, b, 0)
        for first_query in range(0, M, BLOCK_M):
            grad_tile = tl.load(grad_rows + m[None, :] * place.width + n[:, None])  # [BLOCK_N, BLOCK_M], transposed
            mask = (m < M - first_query)[:, None]
            if FORM.key_dim % BLOCK_C != 0:
                mask = mask & (c < FORM.key_dim)[None, :]
            query_tile = load_tile(query, strides.query, m[:, None], c[None, :], mask)
            if WEIGHTED:
                weights = load_tile(selection, strides.selection, m[:, None], c[None, :], mask)
                query_tile = (query_tile * weights).to(query_tile.dtype)
                mass = tl.dot(grad_tile, weights.to(query_tile.dtype), mass, input_precision=FORM.precision)
                selection += BLOCK_M * strides.selection[1]
            elif FORM.key_term:
                mass += tl.sum(grad_tile.to(tl.float32), 1)[:, None]
            grad = tl.dot(grad_tile, query_tile, grad, input_precision=FORM.precision)
            grad_rows += BLOCK_M * place.width
            query += BLOCK_M * strides.query[1]

    row = place.first + column + n
    mask = (row < N)[:, None] & (c < FORM.key_dim)[None, :]
    if FORM.key_term:
        key = row_at(operands.key, strides.key, owner, 0)
        key_tile = load_tile(key, strides.key, row[:, None], c[None, :], mask).to(tl.float32)
        # a row that does not count may hold NaN, and has no mass
        grad += tl.where(mass != 0, key_slope(key_tile, FORM.similarity) * mass, 0.0)
    offsets = (owner * N + row)[:, None] * FORM.key_dim + c[None, :]
    tl.store(grad_key + offsets, grad.to(grad_key.dtype.element_ty), mask=mask)
