"""The gradient of the values of a block of memory rows: dV = P^T dO."""

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import grad_value_config
from stm_fast.kernels.grad_scores import Block
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.tiles import ceil_div


def plan_grad_value(problem: Problem, block: Block, grad_out: Tensor, grad_value: Tensor) -> Launch:
    """The launch that fills the rows of the block in the gradient [B, N, Cv] of the values."""
    batch, rows, value_dim = problem.value.shape
    config = grad_value_config(problem.choice)
    # the columns of the values side by side: they read the same weights
    grid = (ceil_div(value_dim, config.block_v), ceil_div(block.rows, config.block_n), batch)
    tensors = {"weight": block.weight, "grad_out": grad_out, "grad_value": grad_value}
    sizes = {"place": block.place, "M": problem.query.shape[1], "N": rows, "CV": value_dim}
    return Launch.of(_grad_value_kernel, grid, config, **tensors, **sizes, PRECISION=problem.form.precision)


@triton.jit
def _grad_value_kernel(
    weight, grad_out, grad_value, place, M, N, CV: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr
):
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    BLOCK_V: tl.constexpr = TILE.block_v
    b = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_N
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    weight += b * place.padded * place.width + column
    grad_out += b * M * CV
    grad = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for first_query in range(0, M, BLOCK_M):
        weight_tile = tl.load(weight + m[None, :] * place.width + n[:, None])  # [BLOCK_N, BLOCK_M], transposed
        mask = (m < M - first_query)[:, None]
        if CV % BLOCK_V != 0:
            mask = mask & (v < CV)[None, :]
        grad_tile = tl.load(grad_out + m[:, None] * CV + v[None, :], mask=mask, other=0.0)
        grad = tl.dot(weight_tile, grad_tile, grad, input_precision=PRECISION)
        weight += BLOCK_M * place.width
        grad_out += BLOCK_M * CV

    row = place.first + column + n
    mask = (row < N)[:, None] & (v < CV)[None, :]
    tl.store(grad_value + (b * N + row)[:, None] * CV + v[None, :], grad.to(grad_value.dtype.element_ty), mask=mask)
