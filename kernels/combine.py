"""Joins the reads of the parts of a memory: exact, in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import COMBINE
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.tiles import ceil_div


def combine(part_out: Tensor, part_lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """out [B, M, Cv] in `dtype` and lse [B, M], of parts [B, S, M, Cv] and [B, S, M], float32 and contiguous."""
    out, lse, launch = plan_combine(part_out, part_lse, dtype)
    launch.run()
    return out, lse


def plan_combine(part_out: Tensor, part_lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Launch]:
    """The outputs of the combine kernel and the launch that fills them."""
    batch, parts, queries, value_dim = part_out.shape
    out = part_out.new_empty(batch, queries, value_dim, dtype=dtype)
    lse = part_lse.new_empty(batch, queries)
    grid = (ceil_div(queries, COMBINE.rows), max(1, ceil_div(value_dim, COMBINE.columns)), batch)
    tensors = {"part_out": part_out, "part_lse": part_lse, "out": out, "lse": lse}
    return out, lse, Launch.of(_combine_kernel, grid, COMBINE, **tensors, M=queries, parts=parts, CV=value_dim)


@triton.jit
def _combine_kernel(part_out, part_lse, out, lse, M, parts, CV: tl.constexpr, TILE: tl.constexpr):
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_V: tl.constexpr = TILE.columns
    b = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask = (m < M)[:, None] & (column < CV)[None, :]

    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    for part in range(parts):
        row = (b * parts + part) * M + m
        largest = tl.maximum(largest, tl.load(part_lse + row, mask=m < M, other=-float("inf")))
    # a query without any memory row: weights exp(-inf - 0) = 0
    shift = tl.where(largest == -float("inf"), 0.0, largest)

    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for part in range(parts):
        row = (b * parts + part) * M + m
        weight = tl.exp(tl.load(part_lse + row, mask=m < M, other=-float("inf")) - shift)
        total += weight
        tile = tl.load(part_out + row[:, None] * CV + column[None, :], mask=mask, other=0.0)
        accumulator += weight[:, None] * tile

    total = tl.where(total == 0, 1.0, total)
    row = b * M + m
    combined = (accumulator / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * CV + column[None, :], combined, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(lse + row, largest + tl.log(total), mask=m < M)
