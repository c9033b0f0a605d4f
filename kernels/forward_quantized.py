"""The forward memory read of a memory of int8 or fp8 (e4m3) numbers, as they lie.

The mathematics is in README.md. A slot is one frame: R rows that share the mean of their keys and the scales of their
values.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.combine import combine
from stm_fast.kernels.configs import bytes_of_a_part, choose_splits, is_regular
from stm_fast.kernels.configs_quantized import quantized_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import Steps, length_of, load_tile, row_at, steps
from stm_fast.kernels.targets import Target, target_of
from stm_fast.kernels.tiles import ceil_div


class QuantizedOperands(NamedTuple):
    """The tensors of the read, as forward_quantized() takes them."""

    query: Tensor
    key: Tensor
    key_scale: Tensor
    key_mean: Tensor
    value: Tensor
    value_scale: Tensor
    lengths: Tensor | None


class QuantizedStrides(NamedTuple):
    """Their strides by the same names; the first is 0 for a tensor that all objects share."""

    query: Steps
    key: Steps
    key_scale: Steps
    key_mean: Steps
    value: Steps
    value_scale: Steps


def forward_quantized(
    query: Tensor,
    key: Tensor,
    key_scale: Tensor,
    key_mean: Tensor,
    value: Tensor,
    value_scale: Tensor,
    lengths: Tensor | None,
    scale: float,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """out [B, M, Cv] in the dtype of query and lse [B, M] float32 of the memory read.

    Args:
        query: [B or 1, M, Ck] float16, bfloat16 or float32.
        key: [B or 1, T, R, Ck] int8 or float8_e4m3fn, key_scale: [B or 1, T, R], key_mean: [B or 1, T, Ck], float32.
        value: [B, T, R, Cv] in the dtype of key, value_scale: [B, T, Cv] float32. Any strides; fp8 is not
            copied if rows are contiguous for each channel (a view of [B, T, Cv, R]).
        lengths: [B] int32 or None, rows that count, slot after slot; clamped to 0..T*R.
        scale: factor of the scores.
        splits: parts of the memory, chosen by the number of processors when None.
    """
    operands = QuantizedOperands(query, key, key_scale, key_mean, value, value_scale, lengths)
    part_out, part_lse, launch = plan_forward_quantized(operands, scale, target_of(query.device), splits)
    launch.run()
    if part_lse.shape[1] == 1:
        return part_out.squeeze(1), part_lse.squeeze(1)
    return combine(part_out, part_lse, query.dtype)


def plan_forward_quantized(
    operands: QuantizedOperands, scale: float, target: Target, splits: int | None = None
) -> tuple[Tensor, Tensor, Launch]:
    """The outputs [B, splits, M, Cv] and [B, splits, M] of the kernel, and the launch that fills them."""
    query, value = operands.query, operands.value
    batch, slots, rows, value_dim = value.shape
    queries, key_dim = query.shape[1:]
    config = quantized_config(target.architecture, is_regular(key_dim, value_dim), value_dim)
    value_programs = ceil_div(value_dim, config.block_v)
    tiles = ceil_div(queries, config.block_m)
    if splits is None:
        blocks = slots * ceil_div(rows, config.block_n)
        part_bytes = bytes_of_a_part(batch, queries, value_dim)
        splits = choose_splits(target, tiles * value_programs * batch, blocks, part_bytes)
    out = query.new_empty(batch, splits, queries, value_dim, dtype=query.dtype if splits == 1 else torch.float32)
    lse = query.new_empty(batch, splits, queries, dtype=torch.float32)
    arguments = {
        "operands": operands,
        "out": out,
        "lse": lse,
        "strides": QuantizedStrides(*map(steps, operands[:-1])),
        "M": queries,
        "slots": slots,
        "R": rows,
        "splits": splits,
        "scale": scale * math.log2(math.e),
        "CK": key_dim,
        "CV": value_dim,
        "BLOCK_K": max(32, triton.next_power_of_2(key_dim)),
        "VALUE_PROGRAMS": value_programs,
        "INTEGER": value.dtype == torch.int8,
        "PADDED": _is_padded(value),
    }
    return out, lse, Launch.of(_forward_quantized_kernel, (tiles, value_programs * splits, batch), config, **arguments)


def _is_padded(value: Tensor) -> bool:
    """Whether the rows of a slot are contiguous and have room up to a multiple of 16."""
    rows, (between_slots, between_rows, between_channels) = value.shape[2], value.stride()[1:]
    aligned = (value.storage_offset(), value.stride(0), between_slots, between_channels)
    return between_rows == 1 and between_channels >= rows and all(stride % 16 == 0 for stride in aligned)


@triton.jit
def _query_tile(query, strides, m, c, M, CK: tl.constexpr):
    """Queries as float32."""
    mask = (m < M)[:, None] & (c < CK)[None, :]
    return load_tile(query, strides, m[:, None], c[None, :], mask).to(tl.float32)


@triton.jit
def _unit(value_scale, mask):
    """The scales of the values of a slot; those of all but empty channels are raised, so that quotients stay finite."""
    return tl.maximum(tl.load(value_scale, mask=mask, other=1.0), 1e-20)


@triton.jit
def _whole_halves(tile):
    """int8 as float16, exactly, by one addition to the bits of 1152, whose last place is 1, and one subtraction."""
    return (tile.to(tl.int16) + 0x6480).to(tl.float16, bitcast=True) - 1152.0


@triton.jit
def _forward_quantized_kernel(
    operands,
    out,
    lse,
    strides,
    M,
    slots,
    R,
    splits,
    scale,
    CK: tl.constexpr,
    CV: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VALUE_PROGRAMS: tl.constexpr,
    INTEGER: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One tile of queries, one part of the memory, BLOCK_V columns of the values. scale has log2(e)."""
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    BLOCK_V: tl.constexpr = TILE.block_v
    part = tl.program_id(1) // VALUE_PROGRAMS
    value_program = tl.program_id(1) % VALUE_PROGRAMS
    b = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_K)
    v = value_program * BLOCK_V + tl.arange(0, BLOCK_V)

    # blocks of rows, counted through all slots; a slot ends with a block that may not be full
    blocks_per_slot = tl.cdiv(R, BLOCK_N)
    length = length_of(operands.lengths, b, slots * R)
    blocks = length // R * blocks_per_slot + tl.cdiv(length % R, BLOCK_N)
    blocks_per_part = tl.cdiv(blocks, splits)
    first_block = tl.minimum(part * blocks_per_part, blocks)
    last_block = tl.minimum(first_block + blocks_per_part, blocks)
    first_slot = first_block // blocks_per_slot
    last_slot = tl.cdiv(last_block, blocks_per_slot)

    query = row_at(operands.query, strides.query, b, 0)
    exact_query = _query_tile(query, strides.query, m, c, M, CK)
    LARGEST: tl.constexpr = 127.0 if INTEGER else 448.0
    query_scale = tl.maximum(tl.max(tl.abs(exact_query), 1) / LARGEST, 1e-30)
    scaled_query = exact_query / query_scale[:, None]
    quantized_query = tl.floor(scaled_query + 0.5).to(tl.int8) if INTEGER else scaled_query.to(tl.float8e4nv)
    query_factor = query_scale * scale

    # row_at() of a slot
    key = row_at(operands.key, strides.key, b, first_slot)
    key_scale = row_at(operands.key_scale, strides.key_scale, b, first_slot)
    key_mean = row_at(operands.key_mean, strides.key_mean, b, first_slot)
    value = row_at(operands.value, strides.value, b, first_slot)
    value_scale = row_at(operands.value_scale, strides.value_scale, b, first_slot)
    key_offsets = n[None, :] * strides.key[2] + c[:, None] * strides.key[3]  # [BLOCK_K, BLOCK_N], transposed
    value_offsets = n[:, None] * strides.value[2] + v[None, :] * strides.value[3]  # [BLOCK_N, BLOCK_V]

    # weights are 0..1 in int8 reads; fp8 has few steps below 1, so there they are 0..256
    SHIFT: tl.constexpr = 0.0 if INTEGER else 8.0
    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for slot in range(first_slot, last_slot):
        # the accumulator is in units of the slot at hand. Units, means and queries are loaded again for every slot:
        # kept, they would take the registers of the accumulator
        unit = _unit(value_scale + v * strides.value_scale[2], v < CV)
        # counted back from the pointer at hand: a second name for it, carried through the loop, is taken by Triton for
        # a constant, because both names begin as the same pointer
        back = tl.where(slot > first_slot, strides.value_scale[1], 0)
        accumulator = accumulator * (_unit(value_scale - back + v * strides.value_scale[2], v < CV) / unit)[None, :]
        mean = tl.load(key_mean + c * strides.key_mean[2], mask=c < CK, other=0.0)
        exact_query = _query_tile(query, strides.query, m, c, M, CK)
        mean_score = tl.sum(exact_query * mean[None, :], 1) * scale

        start = tl.maximum(first_block - slot * blocks_per_slot, 0) * BLOCK_N
        end = tl.minimum((last_block - slot * blocks_per_slot) * BLOCK_N, tl.minimum(R, length - slot * R))
        key_rows = key + start.to(tl.int64) * strides.key[2]
        key_scale_rows = key_scale + start.to(tl.int64) * strides.key_scale[2]
        value_rows = value + start.to(tl.int64) * strides.value[2]
        for first_row in range(start, end, BLOCK_N):
            valid = n < end - first_row
            key_tile = tl.load(key_rows + key_offsets, mask=(c < CK)[:, None] & valid[None, :], other=0.0)
            factor = tl.load(key_scale_rows + n * strides.key_scale[2], mask=valid, other=0.0)
            if INTEGER:
                score = tl.dot(quantized_query, key_tile, out_dtype=tl.int32).to(tl.float32)
            else:
                score = tl.dot(quantized_query, key_tile, out_dtype=tl.float32)
            score = score * query_factor[:, None] * factor[None, :] + mean_score[:, None]
            score = tl.where(valid[None, :], score, -float("inf"))

            new_largest = tl.maximum(largest, tl.max(score, 1))
            # where every score so far is -inf: exp2(-inf - 0) is 0, exp2(-inf + inf) would be NaN
            shift = tl.where(new_largest == -float("inf"), 0.0, new_largest - SHIFT)
            weight = tl.math.exp2(score - shift[:, None])
            rescale = tl.math.exp2(largest - SHIFT - shift)
            total = total * rescale + tl.sum(weight, 1)
            largest = new_largest

            # where rows are contiguous, a mask of whole sixteens lets them be loaded sixteen at a time
            loaded = n < tl.cdiv(end - first_row, 16) * 16 if PADDED else valid
            value_tile = tl.load(value_rows + value_offsets, mask=loaded[:, None] & (v < CV)[None, :], other=0.0)
            accumulator = accumulator * rescale[:, None]
            if INTEGER:
                accumulator = tl.dot(weight.to(tl.float16), _whole_halves(value_tile), accumulator)
            else:
                # Hopper sums products of fp8 in some 14 bits: each step has separate sums, added in float32
                accumulator += tl.dot(weight.to(tl.float8e4nv), value_tile)
            key_rows += BLOCK_N * strides.key[2]
            key_scale_rows += BLOCK_N * strides.key_scale[2]
            value_rows += BLOCK_N * strides.value[2]
        key += strides.key[1]
        key_scale += strides.key_scale[1]
        key_mean += strides.key_mean[1]
        value += strides.value[1]
        value_scale += strides.value_scale[1]

    # without any row total is 0 and so is the accumulator; lse stays -inf, and the scales may be anything
    total = tl.where(total == 0, 1.0, total)
    row = (b * splits + part) * M + m
    last_value_scale = value_scale - strides.value_scale[1]
    unit = _unit(last_value_scale + v * strides.value_scale[2], (v < CV) & (first_block < last_block))
    result = accumulator * unit[None, :] / total[:, None]
    tl.store(
        out + row[:, None] * CV + v[None, :],
        result.to(out.dtype.element_ty),
        mask=(m < M)[:, None] & (v < CV)[None, :],
    )
    if value_program == 0:
        LN2: tl.constexpr = 0.6931471805599453
        tl.store(lse + row, (largest - SHIFT + tl.math.log2(total)) * LN2, mask=m < M)
