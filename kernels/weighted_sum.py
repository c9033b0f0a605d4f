"""Weighted sums of listed rows: each sum is one program's, in the order of its list.

Both directions of a sparse affinity: the values that a query reads, and the queries that read a memory row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import GATHER
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import load_tile, steps
from stm_fast.kernels.tiles import ceil_div


class Lists(NamedTuple):
    """A list of rows for each of R sums: entries offsets[g, r] to offsets[g, r + 1]."""

    rows: Tensor  # [G, E] int64, contiguous; entries of -1 count for nothing
    offsets: Tensor  # [G, R + 1] int64, contiguous
    order: Tensor | None  # [G, E] int64: where the weight of an entry stands; None: in the order of the entries


def lists_of_queries(rows: Tensor) -> Lists:
    """For each query the memory rows [B, M, k] that it reads."""
    batch, queries, count = rows.shape
    offsets = count * torch.arange(queries + 1, device=rows.device)
    return Lists(rows.flatten(1).contiguous(), offsets.expand(batch, -1).contiguous(), None)


def lists_of_memory_rows(rows: Tensor, groups: int, memory_rows: int) -> Lists:
    """For each of the N memory rows the queries that read it; objects of one group share the memory rows.

    rows [B, M, k]; the queries of a group are numbered 0..B / groups * M - 1.
    """
    batch, queries, count = rows.shape
    listed = rows.reshape(groups, batch // max(1, groups) * queries * count)
    by_row, order = listed.sort(dim=1, stable=True)
    bounds = torch.arange(memory_rows + 1, device=rows.device).expand(groups, -1).contiguous()
    return Lists(order // count, torch.searchsorted(by_row, bounds), order)


def weighted_sum(lists: Lists, weight: Tensor, source: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """sum_e weight_e source[row_e] of each list [G, R, C] in `dtype`, summed in float32.

    weight: float32, of E elements for each of the G groups; source: [G, rows, C], any strides.
    """
    weight = weight.reshape(lists.rows.shape)
    weight = weight if lists.order is None else weight.gather(1, lists.order)
    total, launch = plan_weighted_sum(lists, weight.contiguous(), source, dtype)
    launch.run()
    return total


def plan_weighted_sum(lists: Lists, weight: Tensor, source: Tensor, dtype: torch.dtype) -> tuple[Tensor, Launch]:
    """The sums [G, R, C] and the launch that fills them; weight [G, E] float32, contiguous, entry by entry."""
    groups, sums, width = lists.offsets.shape[0], lists.offsets.shape[1] - 1, source.shape[2]
    total = source.new_empty(groups, sums, width, dtype=dtype)
    grid = (ceil_div(sums, GATHER.rows), ceil_div(width, GATHER.columns), groups)
    tensors = {"source": source, "rows": lists.rows, "weight": weight, "offsets": lists.offsets, "total": total}
    sizes = {"entries": lists.rows.shape[1], "sums": sums, "C": width}
    return total, Launch.of(_weighted_sum_kernel, grid, GATHER, **tensors, strides=steps(source), **sizes)


@triton.jit
def _weighted_sum_kernel(
    source, rows, weight, offsets, total, entries, sums, strides, C: tl.constexpr, TILE: tl.constexpr
):
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_C: tl.constexpr = TILE.columns
    g = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    source += g * strides[0]
    offsets += g * (sums + 1) + m
    start = tl.load(offsets, mask=m < sums, other=0)
    end = tl.load(offsets + 1, mask=m < sums, other=0)
    longest = tl.max(end - start, 0).to(tl.int32)

    accumulator = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for step in range(longest):
        entry = g * entries + start + step
        listed = start + step < end
        n = tl.load(rows + entry, mask=listed, other=-1)
        listed = listed & (n >= 0)
        weights = tl.load(weight + entry, mask=listed, other=0.0)
        tile = load_tile(source, strides, n[:, None], c[None, :], listed[:, None] & (c < C)[None, :])
        accumulator += weights[:, None] * tile.to(tl.float32)

    summed = accumulator.to(total.dtype.element_ty)
    tl.store(total + (g * sums + m)[:, None] * C + c[None, :], summed, mask=(m < sums)[:, None] & (c < C)[None, :])
