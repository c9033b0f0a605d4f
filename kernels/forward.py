"""The forward memory read: one pass over the memory with an online softmax, split into parts where queries are few.

The mathematics and the symbols are in README.md.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.combine import combine
from stm_fast.kernels.configs import choose_splits, forward_config
from stm_fast.kernels.launch import Launch, addressable
from stm_fast.kernels.problem import LOG2E, Problem
from stm_fast.kernels.scores import add_products, exponential, logarithm


def forward(problem: Problem, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """out [B, M, Cv] in the dtype of value and lse [B, M] float32 of the memory read.

    `splits`: parts of the memory, chosen by the number of processors when None.
    """
    part_out, part_lse, launch = plan_forward(problem, splits)
    launch.run()
    if part_lse.shape[1] == 1:
        return part_out.squeeze(1), part_lse.squeeze(1)
    return combine(part_out, part_lse, problem.value.dtype, problem.target.dependent_launch)


def plan_forward(problem: Problem, splits: int | None = None) -> tuple[Tensor, Tensor, Launch]:
    """The outputs [B, splits, M, Cv] and [B, splits, M] of the forward kernel, and the launch that fills them."""
    batch, rows, value_dim = problem.value.shape
    queries = problem.query.shape[1]
    config = forward_config(problem.choice)
    value_programs = max(1, triton.cdiv(value_dim, config.value_width))  # without any column there is lse still
    tiles = triton.cdiv(queries, config.block_m)
    if splits is None:
        steps = triton.cdiv(rows, config.block_n)
        splits = choose_splits(problem.target, tiles * value_programs * batch, steps)
    part_dtype = problem.value.dtype if splits == 1 else torch.float32
    out = problem.value.new_empty(batch, splits, queries, value_dim, dtype=part_dtype)
    lse = problem.value.new_empty(batch, splits, queries, dtype=torch.float32)
    problem = problem._replace(key=addressable(problem.key), value=addressable(problem.value))
    arguments = {
        **problem.score_arguments(),
        **problem.value_arguments(),
        "score_factor": problem.score_factor * (LOG2E if problem.base_2 else 1),
        "out": out,
        "lse": lse,
        "splits": splits,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_V": config.block_v,
        "ACCUMULATORS": config.accumulators,
        "VALUE_PROGRAMS": value_programs,
        "BASE_2": problem.base_2,
        "DEPENDENTS": problem.target.dependent_launch and splits > 1,
    }
    return out, lse, Launch(_forward_kernel, (tiles, value_programs * splits, batch), arguments, config)


@triton.jit
def _forward_kernel(
    query,
    key,
    value,
    shrinkage,
    selection,
    lengths,
    norms,
    out,
    lse,
    M,
    N,
    splits,
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
    BLOCK_V: tl.constexpr,
    ACCUMULATORS: tl.constexpr,
    VALUE_PROGRAMS: tl.constexpr,
    BASE_2: tl.constexpr,
    DEPENDENTS: tl.constexpr,
):
    """One tile of queries, one part of the memory, ACCUMULATORS * BLOCK_V columns of the values.

    BASE_2: score_factor holds log2(e), and scores are logarithms to the base 2.
    """
    WIDTH: tl.constexpr = ACCUMULATORS * BLOCK_V
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
    valid_m = m < M
    query += b * stride_query_b
    query_offsets = m[:, None] * stride_query_m + c[None, :] * stride_query_c  # [BLOCK_M, BLOCK_K]
    selection_offsets = m[:, None] * stride_selection_m + c[None, :] * stride_selection_c
    query_mask = valid_m[:, None] & (c < CK)[None, :]
    query_tile = tl.load(query + query_offsets, mask=query_mask, other=0.0)
    selection_tile = None
    if selection is not None:
        selection += b * stride_selection_b
        weights = tl.load(selection + selection_offsets, mask=query_mask, other=0.0)
        selection_tile = weights.to(query_tile.dtype)
        query_tile = (query_tile * weights).to(query_tile.dtype)
    if norms is not None:
        norms_tile = tl.load(norms + b * stride_norms_b + m, mask=valid_m, other=0.0)

    key += b * stride_key_b + start.to(tl.int64) * stride_key_n
    value += b * stride_value_b + start.to(tl.int64) * stride_value_n + first_column * stride_value_c
    key_offsets = n[None, :] * stride_key_n + c[:, None] * stride_key_c  # [BLOCK_K, BLOCK_N], transposed
    value_offsets = n[:, None] * stride_value_n + v[None, :] * stride_value_c  # [BLOCK_N, BLOCK_V]
    if shrinkage is not None:
        shrinkage += b * stride_shrinkage_b + start.to(tl.int64) * stride_shrinkage_n

    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulators = ()
    for _ in tl.static_range(ACCUMULATORS):
        accumulators += (tl.zeros((BLOCK_M, BLOCK_V), tl.float32),)

    for first in range(start, end, BLOCK_N):
        valid = n < end - first
        # rows that do not count may hold NaN: they are never loaded, and their scores are -inf besides
        raw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for chunk in tl.static_range(0, CK, BLOCK_K):
            key_mask = valid[None, :]
            if CK % BLOCK_K != 0:
                key_mask = key_mask & (chunk + c < CK)[:, None]
            if CK > BLOCK_K:
                query_mask = valid_m[:, None] & (chunk + c < CK)[None, :]
                query_tile = tl.load(query + chunk * stride_query_c + query_offsets, mask=query_mask, other=0.0)
                if selection is not None:
                    chunk_selection = selection + chunk * stride_selection_c
                    weights = tl.load(chunk_selection + selection_offsets, mask=query_mask, other=0.0)
                    selection_tile = weights.to(query_tile.dtype)
                    query_tile = (query_tile * weights).to(query_tile.dtype)
            key_tile = tl.load(key + chunk * stride_key_c + key_offsets, mask=key_mask, other=0.0)
            raw = add_products(raw, query_tile, selection_tile, key_tile, L2, PRECISION)
        if norms is not None:
            raw -= norms_tile[:, None]
        factor = score_factor
        if shrinkage is not None:
            factor = (tl.load(shrinkage + n * stride_shrinkage_n, mask=valid, other=0.0) * score_factor)[None, :]
            shrinkage += BLOCK_N * stride_shrinkage_n
        score = tl.where(valid[None, :], raw * factor, -float("inf"))  # [BLOCK_M, BLOCK_N]

        new_largest = tl.maximum(largest, tl.max(score, 1))
        # where every score so far is -inf: exp(-inf - 0) is 0, exp(-inf + inf) would be NaN
        shift = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        weight = exponential(score - shift[:, None], BASE_2)
        rescale = exponential(largest - shift, BASE_2)
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

    if DEPENDENTS:
        # the combine kernel may take processors that have no more to read; it waits for the parts itself
        tl.extra.cuda.gdc_launch_dependents()
    # without any row total is 0 and so are the accumulators; lse stays -inf
    total = tl.where(total == 0, 1.0, total)
    row = (b * splits + part) * M + m
    for i in tl.static_range(ACCUMULATORS):
        column = first_column + i * BLOCK_V + v
        tl.store(
            out + row[:, None] * CV + column[None, :],
            (accumulators[i] / total[:, None]).to(out.dtype.element_ty),
            mask=valid_m[:, None] & (column < CV)[None, :],
        )
    if value_program == 0:
        tl.store(lse + row, logarithm(largest, total, BASE_2), mask=valid_m)
