"""The forward memory read: one pass over the memory with an online softmax, split into parts where queries are few.

The mathematics and the symbols are in README.md.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.combine import combine
from stm_fast.kernels.configs import Arithmetic, choose_splits, forward_config, is_regular
from stm_fast.kernels.launch import Launch, addressable, arithmetic_of, strides
from stm_fast.kernels.targets import Target, target_of


def forward(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, scale: float, splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """out [B, M, Cv] in the dtype of value and lse [B, M] float32 of the memory read.

    Args:
        query: [B or 1, M, Ck], key: [B or 1, N, Ck], value: [B, N, Cv], one dtype (float16, bfloat16, float32).
        lengths: [B] int32 or None; clamped to 0..N.
        scale: factor of the scores.
        splits: parts of the memory, chosen by the number of processors when None.
    """
    target, arithmetic = target_of(query.device), arithmetic_of(value.dtype)
    part_out, part_lse, launch = plan_forward(query, key, value, lengths, scale, target, arithmetic, splits)
    launch.run()
    if part_lse.shape[1] == 1:
        return part_out.squeeze(1), part_lse.squeeze(1)
    return combine(part_out, part_lse, value.dtype)


def plan_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    scale: float,
    target: Target,
    arithmetic: Arithmetic,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Launch]:
    """The outputs [B, splits, M, Cv] and [B, splits, M] of the forward kernel, and the launch that fills them."""
    batch, rows, value_dim = value.shape
    queries, key_dim = query.shape[1:]
    config = forward_config(target.architecture, arithmetic, key_dim, value_dim, _regular(query, key, value))
    key, value = addressable(key, config.block_n), addressable(value, config.block_n)
    value_programs = max(1, triton.cdiv(value_dim, config.value_width))  # without any column there is lse still
    tiles = triton.cdiv(queries, config.block_m)
    if splits is None:
        splits = choose_splits(target, tiles * value_programs * batch, triton.cdiv(rows, config.block_n))
    part_dtype = value.dtype if splits == 1 else torch.float32
    out = value.new_empty(batch, splits, queries, value_dim, dtype=part_dtype)
    lse = value.new_empty(batch, splits, queries, dtype=torch.float32)
    arguments = {
        "query": query,
        "key": key,
        "value": value,
        "lengths": lengths,
        "out": out,
        "lse": lse,
        "M": queries,
        "N": rows,
        "splits": splits,
        "scale": scale * math.log2(math.e),
        **strides("query", query.expand(batch, -1, -1), "bmc"),
        **strides("key", key.expand(batch, -1, -1), "bnc"),
        **strides("value", value, "bnc"),
        "CK": key_dim,
        "CV": value_dim,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_V": config.block_v,
        "ACCUMULATORS": config.accumulators,
        "VALUE_PROGRAMS": value_programs,
        "PRECISION": "ieee" if arithmetic == "half" else arithmetic,
    }
    return out, lse, Launch(_forward_kernel, (tiles, value_programs * splits, batch), arguments, config)


def _regular(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether rows are contiguous, aligned to 16 elements, and fill whole tiles."""
    aligned = all(tensor.stride(2) == 1 and tensor.stride(1) % 16 == 0 for tensor in (query, key, value))
    return aligned and is_regular(key.shape[2], value.shape[2])


@triton.jit
def _forward_kernel(
    query,
    key,
    value,
    lengths,
    out,
    lse,
    M,
    N,
    splits,
    scale,
    stride_query_b,
    stride_query_m,
    stride_query_c,
    stride_key_b,
    stride_key_n,
    stride_key_c,
    stride_value_b,
    stride_value_n,
    stride_value_c,
    CK: tl.constexpr,
    CV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ACCUMULATORS: tl.constexpr,
    VALUE_PROGRAMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of queries, one part of the memory, ACCUMULATORS * BLOCK_V columns of the values. scale has log2(e)."""
    WIDTH: tl.constexpr = ACCUMULATORS * BLOCK_V
    KEY_CHUNKS: tl.constexpr = (CK + BLOCK_K - 1) // BLOCK_K
    part = tl.program_id(1) // VALUE_PROGRAMS
    value_program = tl.program_id(1) % VALUE_PROGRAMS
    b = tl.program_id(2).to(tl.int64)
    first_column = value_program.to(tl.int64) * WIDTH

    length = N
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
    rows_per_part = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    start = tl.minimum(part * rows_per_part, length)
    end = tl.minimum(start + rows_per_part, length)

    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_K)
    v = tl.arange(0, BLOCK_V)
    query += b * stride_query_b
    query_offsets = m[:, None] * stride_query_m + c[None, :] * stride_query_c
    query_mask = (m < M)[:, None]
    query_tile = tl.load(query + query_offsets, mask=query_mask & (c < CK)[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
    key += b * stride_key_b + start.to(tl.int64) * stride_key_n
    value += b * stride_value_b + start.to(tl.int64) * stride_value_n + first_column * stride_value_c
    key_offsets = n[None, :] * stride_key_n + c[:, None] * stride_key_c  # [BLOCK_K, BLOCK_N], transposed
    value_offsets = n[:, None] * stride_value_n + v[None, :] * stride_value_c  # [BLOCK_N, BLOCK_V]

    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulators = ()
    for _ in tl.static_range(ACCUMULATORS):
        accumulators += (tl.zeros((BLOCK_M, BLOCK_V), tl.float32),)

    for first in range(start, end, BLOCK_N):
        valid = n < end - first
        score = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in tl.static_range(KEY_CHUNKS):
            key_mask = valid[None, :]
            if CK % BLOCK_K != 0:
                key_mask = key_mask & (i * BLOCK_K + c < CK)[:, None]
            if KEY_CHUNKS > 1:
                chunk_mask = query_mask & (i * BLOCK_K + c < CK)[None, :]
                query_tile = tl.load(query + i * BLOCK_K * stride_query_c + query_offsets, mask=chunk_mask, other=0.0)
            # rows that do not count may hold NaN: they are never loaded, and their scores are -inf besides
            key_tile = tl.load(key + i * BLOCK_K * stride_key_c + key_offsets, mask=key_mask, other=0.0)
            score = tl.dot(query_tile, key_tile, score, input_precision=PRECISION)
        score = tl.where(valid[None, :], score * scale, -float("inf"))

        new_largest = tl.maximum(largest, tl.max(score, 1))
        # where every score so far is -inf: exp2(-inf - 0) is 0, exp2(-inf + inf) would be NaN
        shift = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        weight = tl.math.exp2(score - shift[:, None])
        rescale = tl.math.exp2(largest - shift)
        total = total * rescale + tl.sum(weight, 1)
        largest = new_largest

        weight = weight.to(value.dtype.element_ty)
        updated = ()
        for i in tl.static_range(ACCUMULATORS):
            value_mask = valid[:, None]
            if CV != VALUE_PROGRAMS * WIDTH:
                value_mask = value_mask & (first_column + i * BLOCK_V + v < CV)[None, :]
            value_tile = tl.load(value + i * BLOCK_V * stride_value_c + value_offsets, mask=value_mask, other=0.0)
            rescaled = accumulators[i] * rescale[:, None]
            updated += (tl.dot(weight, value_tile, rescaled, input_precision=PRECISION),)
        accumulators = updated
        key += BLOCK_N * stride_key_n
        value += BLOCK_N * stride_value_n

    # without any row total is 0 and so are the accumulators; lse stays -inf
    total = tl.where(total == 0, 1.0, total)
    row = (b * splits + part) * M + m
    for i in tl.static_range(ACCUMULATORS):
        column = first_column + i * BLOCK_V + v
        tl.store(
            out + row[:, None] * CV + column[None, :],
            (accumulators[i] / total[:, None]).to(out.dtype.element_ty),
            mask=(m < M)[:, None] & (column < CV)[None, :],
        )
    if value_program == 0:
        LN2: tl.constexpr = 0.6931471805599453
        tl.store(lse + row, (largest + tl.math.log2(total)) * LN2, mask=m < M)
