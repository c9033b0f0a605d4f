"""The forward memory read for sm_90 in Gluon: TMA, mbarriers, wgmma and specialized warp groups.

The mathematics is that of forward.py, the schedule is in kernels/README.md. tests/gluon_simulator.py runs these
functions on the CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from stm_fast.kernels.configs import bytes_of_a_part, choose_splits
from stm_fast.kernels.experimental.configs_hopper import HopperConfig, hopper_config
from stm_fast.kernels.problem import LOG2E, Problem

_GLUON_TYPES = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


class GluonLaunch(NamedTuple):
    """One launch of the kernel, which can be run on a device, compiled without one, or simulated."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    config: HopperConfig

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler and the launcher."""
        return {"num_warps": self.config.num_warps, "maxnreg": self.config.maxnreg}

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.options)

    def operands(self) -> Callable[..., Sequence[Any]]:
        """A function that returns the kernel's operands for the tensors of any problem of this layout."""
        forms = [_described_as(self.arguments[name], None) for name in ("query", "key", "value")]

        def operands(*tensors: Tensor | None) -> Sequence[Any]:
            lengths = tensors[5]
            return *map(_described_as, forms, tensors[:3]), lengths

        return operands


def plan_forward_hopper(
    problem: Problem, splits: int | None = None, config: HopperConfig | None = None
) -> tuple[Tensor, Tensor, GluonLaunch]:
    """The outputs [B, splits, M, Cv] and [B, splits, M] of the kernel, and the launch that fills them.

    Args:
        problem: one for which is_for_hopper() of configs_hopper.py is true.
        splits: parts of the memory; None chooses them by the number of processors.
    """
    query, key, value = problem.query, problem.key, problem.value
    batch, rows, value_dim = value.shape
    queries = query.shape[1]
    config = config or hopper_config(key.shape[2])
    tiles = triton.cdiv(queries, config.block_m)
    if splits is None:
        part_bytes = bytes_of_a_part(batch, queries, value_dim)
        splits = choose_splits(problem.target, tiles * batch, triton.cdiv(rows, config.block_n), part_bytes)
    out = value.new_empty(batch, splits, queries, value_dim, dtype=value.dtype if splits == 1 else torch.float32)
    lse = value.new_empty(batch, splits, queries, dtype=torch.float32)
    arguments = {
        "query": _descriptor(query, config.block_m, config.block_k),
        "key": _descriptor(key, config.block_n, config.block_k),
        "value": _descriptor(value, config.block_n, config.half),
        "lengths": problem.lengths,
        "out": out,
        "lse": lse,
        "M": queries,
        "N": rows,
        "splits": splits,
        "scale": problem.scale * LOG2E,
        "query_rows": _rows_per_object(query),
        "key_rows": _rows_per_object(key),
        "value_rows": _rows_per_object(value),
        "TILE": config,
    }
    return out, lse, GluonLaunch(_forward_hopper_kernel, (tiles, splits, batch), arguments, config)


def _rows_per_object(tensor: Tensor) -> int:
    """The stride between objects in rows of the flattened [rows, C]; 0 if all share one."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0) // tensor.stride(1)


def _descriptor(tensor: Tensor, block_rows: int, block_columns: int) -> TensorDescriptor:
    """Tiles of [B, rows, C] as one matrix [B * rows, C]. Rows and columns outside it are read as 0.

    A tile at the end of an object may include rows of the next one; their scores become -inf and their values 0.
    """
    batch, rows, width = tensor.shape
    block = [block_rows, block_columns]
    layout = gl.NVMMASharedLayout.get_default_for(block, _GLUON_TYPES[tensor.dtype])
    all_rows = (batch - 1) * _rows_per_object(tensor) + rows
    return TensorDescriptor(tensor, [all_rows, width], [tensor.stride(1), 1], block, layout)


def _described_as(descriptor: TensorDescriptor, tensor: Tensor | None) -> TensorDescriptor:
    """The descriptor for another tensor of the same layout, without its checks, which take longer than a launch."""
    new = object.__new__(TensorDescriptor)
    vars(new).update(vars(descriptor), base=tensor)
    return new


@gluon.jit
def _load(query, key, value, first_query, first_key, first_value, steps, tiles, barriers, TILE: gl.constexpr):
    """The producer, one warp: query, then per step the keys of the next step and the values of this one."""
    query_tile, key_tiles, value_tiles, _weight_tiles, _rescales = tiles
    query_full, key_full, key_empty, value_full, value_empty, _weight_full, _weight_empty = barriers
    mbarrier.expect(query_full, TILE.block_m * TILE.block_k * 2)
    tma.async_copy_global_to_shared(query, [first_query, 0], query_full, query_tile)
    mbarrier.expect(key_full.index(0), TILE.block_n * TILE.block_k * 2)
    tma.async_copy_global_to_shared(key, [first_key, 0], key_full.index(0), key_tiles.index(0))
    for step in range(steps):
        more = step + 1 < steps
        slot = (step + 1) % TILE.stages
        mbarrier.wait(key_empty.index(slot), ((step + 1) // TILE.stages & 1) ^ 1, pred=more)
        mbarrier.expect(key_full.index(slot), TILE.block_n * TILE.block_k * 2, pred=more)
        tma.async_copy_global_to_shared(
            key, [first_key + (step + 1) * TILE.block_n, 0], key_full.index(slot), key_tiles.index(slot), pred=more
        )
        for half in gl.static_range(2):
            slot = step % TILE.stages * 2 + half
            mbarrier.wait(value_empty.index(slot), (step // TILE.stages & 1) ^ 1)
            mbarrier.expect(value_full.index(slot), TILE.block_n * TILE.half * 2)
            tma.async_copy_global_to_shared(
                value,
                [first_value + step * TILE.block_n, half * TILE.half],
                value_full.index(slot),
                value_tiles.index(slot),
            )


@gluon.jit
def _softmax_and_left(out, lse, M, scale, first_query, rows, steps, tiles, barriers, TILE: gl.constexpr):
    """The first warp group: scores, softmax, and the left half of the values."""
    query_tile, key_tiles, value_tiles, weight_tiles, rescales = tiles
    query_full, key_full, key_empty, value_full, value_empty, weight_full, weight_empty = barriers
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE.block_n, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE.half, 16])
    score_rows: gl.constexpr = gl.SliceLayout(1, score_layout)
    out_rows: gl.constexpr = gl.SliceLayout(1, out_layout)
    no_score = gl.zeros((TILE.block_m, TILE.block_n), gl.float32, score_layout)
    largest = gl.full((TILE.block_m,), -float("inf"), gl.float32, score_rows)
    total = gl.zeros((TILE.block_m,), gl.float32, score_rows)
    accumulator = gl.zeros((TILE.block_m, TILE.half), gl.float32, out_layout)

    mbarrier.wait(query_full, 0)
    mbarrier.wait(key_full.index(0), 0)
    score = warpgroup_mma(query_tile, key_tiles.index(0).permute((1, 0)), no_score, use_acc=False)
    mbarrier.arrive(key_empty.index(0), count=1)
    # the scores of the next step are computed during each softmax; after the last step, unused ones of stale keys
    next_score = _next_scores(query_tile, key_tiles, key_full, 1, steps, no_score, TILE)
    rescale, largest, total = _softmax(
        score, scale, rows, largest, total, weight_tiles, rescales, weight_full, weight_empty, 0, TILE
    )
    score = warpgroup_mma_wait(0, deps=[next_score])
    mbarrier.arrive(key_empty.index(1 % TILE.stages), count=1, pred=steps > 1)
    for step in range(1, steps):
        # the product of the previous step too is computed during this softmax
        before = (step - 1) % TILE.stages
        mbarrier.wait(value_full.index(before * 2), (step - 1) // TILE.stages & 1)
        accumulator = warpgroup_mma(
            weight_tiles.index(before), value_tiles.index(before * 2), accumulator, is_async=True
        )
        next_score = _next_scores(query_tile, key_tiles, key_full, step + 1, steps, no_score, TILE)
        rescale, largest, total = _softmax(
            score, scale, rows, largest, total, weight_tiles, rescales, weight_full, weight_empty, step, TILE
        )
        score, accumulator = warpgroup_mma_wait(0, deps=[next_score, accumulator])
        mbarrier.arrive(key_empty.index((step + 1) % TILE.stages), count=1, pred=step + 1 < steps)
        mbarrier.arrive(value_empty.index(before * 2), count=1)
        accumulator = accumulator * gl.convert_layout(rescale, out_rows)[:, None]

    last = (steps - 1) % TILE.stages
    mbarrier.wait(value_full.index(last * 2), (steps - 1) // TILE.stages & 1)
    _clear_rows(value_tiles.index(last * 2), rows - (steps - 1) * TILE.block_n, TILE)
    accumulator = warpgroup_mma(weight_tiles.index(last), value_tiles.index(last * 2), accumulator)

    # if there are no rows, total and accumulator are 0, and lse is -inf
    total = gl.where(total == 0, 1.0, total)
    mbarrier.wait(weight_empty.index(steps % TILE.stages), (steps // TILE.stages & 1) ^ 1)
    rescales.index(steps % TILE.stages).store(1 / total)
    mbarrier.arrive(weight_full.index(steps % TILE.stages), count=1)
    LN2: gl.constexpr = 0.6931471805599453
    m = first_query + gl.arange(0, TILE.block_m, score_rows)
    gl.store(lse + m, (largest + gl.log2(total)) * LN2, mask=m < M)
    _store_half(out, accumulator, gl.convert_layout(1 / total, out_rows), first_query, M, 0, TILE, out_layout)


@gluon.jit
def _right(out, M, first_query, rows, steps, tiles, barriers, TILE: gl.constexpr):
    """The second warp group: the right half of the values, with the weights of the first."""
    _query_tile, _key_tiles, value_tiles, weight_tiles, rescales = tiles
    _query_full, _key_full, _key_empty, value_full, value_empty, weight_full, weight_empty = barriers
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE.half, 16])
    out_rows: gl.constexpr = gl.SliceLayout(1, out_layout)
    accumulator = gl.zeros((TILE.block_m, TILE.half), gl.float32, out_layout)
    for step in range(steps):
        slot = step % TILE.stages
        phase = step // TILE.stages & 1
        mbarrier.wait(weight_full.index(slot), phase)
        accumulator = accumulator * rescales.index(slot).load(out_rows)[:, None]
        mbarrier.wait(value_full.index(slot * 2 + 1), phase)
        if step == steps - 1:
            _clear_rows(value_tiles.index(slot * 2 + 1), rows - step * TILE.block_n, TILE)
        accumulator = warpgroup_mma(weight_tiles.index(slot), value_tiles.index(slot * 2 + 1), accumulator)
        mbarrier.arrive(value_empty.index(slot * 2 + 1), count=1)
        mbarrier.arrive(weight_empty.index(slot), count=1)
    mbarrier.wait(weight_full.index(steps % TILE.stages), steps // TILE.stages & 1)
    inverse = rescales.index(steps % TILE.stages).load(out_rows)
    _store_half(out, accumulator, inverse, first_query, M, TILE.half, TILE, out_layout)


@gluon.jit
def _next_scores(query_tile, key_tiles, key_full, step, steps, no_score, TILE: gl.constexpr):
    """Starts the product of queries and the keys of a step."""
    slot = step % TILE.stages
    mbarrier.wait(key_full.index(slot), step // TILE.stages & 1, pred=step < steps)
    return warpgroup_mma(query_tile, key_tiles.index(slot).permute((1, 0)), no_score, use_acc=False, is_async=True)


@gluon.jit
def _softmax(
    score, scale, rows, largest, total, weight_tiles, rescales, weight_full, weight_empty, step, TILE: gl.constexpr
):
    """Passes the weights of a step to both warp groups; returns the factor for earlier sums, new maxima and totals."""
    score_layout: gl.constexpr = score.type.layout
    n = step * TILE.block_n + gl.arange(0, TILE.block_n, gl.SliceLayout(0, score_layout))
    score = gl.where((n < rows)[None, :], score * scale, -float("inf"))
    new_largest = gl.maximum(largest, gl.max(score, 1))
    # if every score so far is -inf: exp2(-inf - 0) is 0, but exp2(-inf + inf) would be NaN
    shift = gl.where(new_largest == -float("inf"), 0.0, new_largest)
    weight = gl.exp2(score - shift[:, None])
    rescale = gl.exp2(largest - shift)
    slot = step % TILE.stages
    mbarrier.wait(weight_empty.index(slot), (step // TILE.stages & 1) ^ 1)
    weight_tiles.index(slot).store(weight.to(weight_tiles.dtype))
    rescales.index(slot).store(rescale)
    fence_async_shared()
    mbarrier.arrive(weight_full.index(slot), count=1)
    return rescale, new_largest, total * rescale + gl.sum(weight, 1)


@gluon.jit
def _clear_rows(tile, valid, TILE: gl.constexpr):
    """Sets rows from `valid` on to 0, because spare rows and the next object may hold NaN."""
    BLOCK_N: gl.constexpr = TILE.block_n
    PART: gl.constexpr = 16
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    if valid < BLOCK_N:
        for first in gl.static_range(0, BLOCK_N, PART):
            rows = tile.slice(first, PART)
            n = first + gl.arange(0, PART, gl.SliceLayout(1, layout))
            rows.store(gl.where((n < valid)[:, None], rows.load(layout), 0.0))
        fence_async_shared()


@gluon.jit
def _store_half(out, accumulator, inverse, first_query, M, first_column, TILE: gl.constexpr, out_layout: gl.constexpr):
    m = first_query + gl.arange(0, TILE.block_m, gl.SliceLayout(1, out_layout))
    column = first_column + gl.arange(0, TILE.half, gl.SliceLayout(0, out_layout))
    tile = (accumulator * inverse[:, None]).to(out.dtype.element_ty)
    gl.store(out + m[:, None] * (2 * TILE.half) + column[None, :], tile, mask=(m < M)[:, None])


@gluon.jit
def _forward_hopper_kernel(
    query, key, value, lengths, out, lse, M, N, splits, scale, query_rows, key_rows, value_rows, TILE: gl.constexpr
):
    """One tile of queries, one part of the memory, all 2 * TILE.half columns of values. `scale` includes log2(e)."""
    STAGES: gl.constexpr = TILE.stages
    first_query = gl.program_id(0) * TILE.block_m
    part = gl.program_id(1)
    b = gl.program_id(2)
    length = N
    if lengths is not None:
        length = gl.minimum(gl.maximum(gl.load(lengths + b), 0), N)
    rows_per_part = gl.cdiv(gl.cdiv(length, TILE.block_n), splits) * TILE.block_n
    start = gl.minimum(part * rows_per_part, length)
    rows = gl.minimum(rows_per_part, length - start)
    # a part without rows takes one step, without valid rows
    steps = gl.maximum(gl.cdiv(rows, TILE.block_n), 1)

    row = (b.to(gl.int64) * splits + part) * M
    out += row * (2 * TILE.half)
    lse += row

    weight_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE.block_m, TILE.block_n], query.dtype)
    row_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    query_tile = gl.allocate_shared_memory(query.dtype, [TILE.block_m, TILE.block_k], query.layout)
    key_tiles = gl.allocate_shared_memory(key.dtype, [STAGES, TILE.block_n, TILE.block_k], key.layout)
    value_tiles = gl.allocate_shared_memory(value.dtype, [2 * STAGES, TILE.block_n, TILE.half], value.layout)
    weight_tiles = gl.allocate_shared_memory(value.dtype, [STAGES, TILE.block_m, TILE.block_n], weight_layout)
    rescales = gl.allocate_shared_memory(gl.float32, [STAGES, TILE.block_m], row_layout)
    query_full = gl.allocate_shared_memory(gl.int64, [1], barrier_layout)
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    value_full = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], barrier_layout)
    value_empty = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], barrier_layout)
    weight_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    weight_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_layout)
    mbarrier.init(query_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(key_full.index(i), count=1)
        mbarrier.init(key_empty.index(i), count=1)
        mbarrier.init(weight_full.index(i), count=1)
        mbarrier.init(weight_empty.index(i), count=1)
    for i in gl.static_range(2 * STAGES):
        mbarrier.init(value_full.index(i), count=1)
        mbarrier.init(value_empty.index(i), count=1)
    fence_async_shared()

    tiles = (query_tile, key_tiles, value_tiles, weight_tiles, rescales)
    barriers = (query_full, key_full, key_empty, value_full, value_empty, weight_full, weight_empty)
    query_row = b * query_rows + first_query
    key_row = b * key_rows + start
    value_row = b * value_rows + start
    gl.warp_specialize(
        [
            (_softmax_and_left, (out, lse, M, scale, first_query, rows, steps, tiles, barriers, TILE)),
            (_right, (out, M, first_query, rows, steps, tiles, barriers, TILE)),
            (_load, (query, key, value, query_row, key_row, value_row, steps, tiles, barriers, TILE)),
        ],
        [4, 1],
        [240, 24],
    )
