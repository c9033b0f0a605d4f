"""The forward memory read: one pass over the memory with an online softmax, split into parts where queries are few.

The mathematics and the symbols are in README.md.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import bytes_of_a_part, choose_splits, forward_config
from stm_fast.kernels.experimental.configs_hopper import is_for_hopper
from stm_fast.kernels.launch import AnyLaunch, Launch
from stm_fast.kernels.plans import Plans
from stm_fast.kernels.problem import LOG2E, Problem
from stm_fast.kernels.read_plan import ReadPlan
from stm_fast.kernels.scores import add_products, exponential, logarithm
from stm_fast.kernels.tiles import ForwardConfig, chunks
from stm_fast.kernels.tuned import tuned_tile

# chunks of a query that stay in registers or shared memory through the whole loop
MOST_HELD = 2

_PLANS: Plans[ReadPlan] = Plans()


def forward(problem: Problem, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """out [B, M, Cv] in the dtype of value and lse [B, M] float32 of the memory read.

    `splits`: parts of the memory, chosen by the number of processors when None.
    """
    return forward_plan(problem, splits).read(*problem.tensors)


def forward_plan(problem: Problem, splits: int | None = None) -> ReadPlan:
    """The plan for this and every other problem of its layout, which reads `problem.tensors`."""
    purpose = (problem.layout, splits)
    return _PLANS.get(purpose) or _PLANS.keep(purpose, _new_plan(problem, splits))


def _new_plan(problem: Problem, splits: int | None) -> ReadPlan:
    part_out, part_lse, launch = plan_read(problem, splits)
    operands = None if isinstance(launch, Launch) else launch.operands()
    return ReadPlan(part_out, part_lse, launch, problem.value.dtype, problem.target.dependent_launch, operands)


def plan_read(problem: Problem, splits: int | None = None) -> tuple[Tensor, Tensor, AnyLaunch]:
    """What plan_forward() plans, of the Hopper kernel where that is to read, but for a user's own tile."""
    module = hopper_module() if is_for_hopper(problem) else None
    if module is None or tuned_tile("forward", problem.choice, ForwardConfig) is not None:
        return plan_forward(problem, splits)
    return module.plan_forward_hopper(problem, splits)


@cache
def hopper_module() -> Any:
    """forward_hopper.py; None with a Triton that has moved the names of Gluon, which is experimental."""
    try:
        from stm_fast.kernels.experimental import forward_hopper
    except ImportError:
        return None
    return forward_hopper


def plan_forward(problem: Problem, splits: int | None = None) -> tuple[Tensor, Tensor, Launch]:
    """The outputs [B, splits, M, Cv] and [B, splits, M] of the portable kernel, and the launch that fills them."""
    batch, rows, value_dim = problem.value.shape
    queries = problem.query.shape[1]
    config = forward_config(problem.choice)
    value_programs = max(1, triton.cdiv(value_dim, config.value_width))  # without any column there is lse still
    keys = chunks(problem.key.shape[2], config.block_k)
    values = chunks(triton.cdiv(value_dim, value_programs), config.block_v, config.narrowest_value)
    tiles = triton.cdiv(queries, config.block_m)
    if splits is None:
        steps = triton.cdiv(rows, config.block_n)
        part_bytes = bytes_of_a_part(batch, queries, value_dim)
        splits = choose_splits(problem.target, tiles * value_programs * batch, steps, part_bytes)
    part_dtype = problem.value.dtype if splits == 1 else torch.float32
    out = problem.value.new_empty(batch, splits, queries, value_dim, dtype=part_dtype)
    lse = problem.value.new_empty(batch, splits, queries, dtype=torch.float32)
    arguments = {
        **problem.score_arguments(),
        **problem.value_arguments(),
        "score_factor": problem.score_factor * (LOG2E if problem.base_2 else 1),
        "out": out,
        "lse": lse,
        "splits": splits,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": keys.block,
        "LAST_K": keys.last,
        "KEY_CHUNKS": keys.count,
        "BLOCK_V": values.block,
        "LAST_V": values.last,
        "ACCUMULATORS": values.count,
        "VALUE_PROGRAMS": value_programs,
        "QUERY_HELD": problem.arithmetic == "half" and keys.count <= MOST_HELD,
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
    LAST_K: tl.constexpr,
    KEY_CHUNKS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    LAST_V: tl.constexpr,
    ACCUMULATORS: tl.constexpr,
    VALUE_PROGRAMS: tl.constexpr,
    QUERY_HELD: tl.constexpr,
    BASE_2: tl.constexpr,
    DEPENDENTS: tl.constexpr,
):
    """One tile of queries, one part of the memory, the columns of ACCUMULATORS chunks of the values.

    BASE_2: score_factor holds log2(e), and scores are logarithms to the base 2.
    QUERY_HELD: the chunks of the query are loaded once, and not again in each step.
    """
    WIDTH: tl.constexpr = (ACCUMULATORS - 1) * BLOCK_V + LAST_V
    part = tl.program_id(1) // VALUE_PROGRAMS
    value_program = tl.program_id(1) % VALUE_PROGRAMS
    b = tl.program_id(2).to(tl.int64)
    first_column = value_program * WIDTH

    length = N
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
    rows_per_part = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    start = tl.minimum(part * rows_per_part, length)
    end = tl.minimum(start + rows_per_part, length)

    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    valid_m = m < M
    query += b * stride_query_b
    if selection is not None:
        selection += b * stride_selection_b
    if norms is not None:
        norms_tile = tl.load(norms + b * stride_norms_b + m, mask=valid_m, other=0.0)

    key += b * stride_key_b + start.to(tl.int64) * stride_key_n
    value += b * stride_value_b + start.to(tl.int64) * stride_value_n + first_column.to(tl.int64) * stride_value_c
    if shrinkage is not None:
        shrinkage += b * stride_shrinkage_b + start.to(tl.int64) * stride_shrinkage_n

    held = ()
    if QUERY_HELD:
        for i in tl.static_range(KEY_CHUNKS):
            c = _columns(i, BLOCK_K, KEY_CHUNKS, LAST_K)
            chunk = _query_chunk(
                query, selection, m, c, M, stride_query_m, stride_query_c, stride_selection_m, stride_selection_c, CK
            )
            held += (chunk,)

    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulators = ()
    for i in tl.static_range(ACCUMULATORS):
        accumulators += (tl.zeros((BLOCK_M, BLOCK_V if i + 1 < ACCUMULATORS else LAST_V), tl.float32),)

    for first in range(start, end, BLOCK_N):
        valid = n < end - first
        # rows that do not count may hold NaN: they are never loaded, and their scores are -inf besides
        raw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in tl.static_range(KEY_CHUNKS):
            c = _columns(i, BLOCK_K, KEY_CHUNKS, LAST_K)
            key_mask = valid[None, :]
            if i * BLOCK_K + (BLOCK_K if i + 1 < KEY_CHUNKS else LAST_K) > CK:
                key_mask = key_mask & (c < CK)[:, None]
            if QUERY_HELD:
                chunk = held[i]
            else:
                chunk = _query_chunk(
                    query,
                    selection,
                    m,
                    c,
                    M,
                    stride_query_m,
                    stride_query_c,
                    stride_selection_m,
                    stride_selection_c,
                    CK,
                )
            key_offsets = n[None, :] * stride_key_n + c[:, None] * stride_key_c  # [c, BLOCK_N], transposed
            key_tile = tl.load(key + key_offsets, mask=key_mask, other=0.0)
            raw = add_products(raw, chunk[0], None if selection is None else chunk[1], key_tile, L2, PRECISION)
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
            v = _columns(i, BLOCK_V, ACCUMULATORS, LAST_V)
            value_mask = valid[:, None]
            # whether the last program's chunk may reach beyond the columns
            if (VALUE_PROGRAMS - 1) * WIDTH + i * BLOCK_V + (BLOCK_V if i + 1 < ACCUMULATORS else LAST_V) > CV:
                value_mask = value_mask & (first_column + v < CV)[None, :]
            value_offsets = n[:, None] * stride_value_n + v[None, :] * stride_value_c  # [BLOCK_N, v]
            value_tile = tl.load(value + value_offsets, mask=value_mask, other=0.0)
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
        column = first_column + _columns(i, BLOCK_V, ACCUMULATORS, LAST_V)
        tl.store(
            out + row[:, None] * CV + column[None, :],
            (accumulators[i] / total[:, None]).to(out.dtype.element_ty),
            mask=valid_m[:, None] & (column < CV)[None, :],
        )
    if value_program == 0:
        tl.store(lse + row, logarithm(largest, total, BASE_2), mask=valid_m)


@triton.jit
def _columns(i: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr, LAST: tl.constexpr):
    """The columns of chunk i."""
    return i * BLOCK + tl.arange(0, BLOCK if i + 1 < COUNT else LAST)


@triton.jit
def _query_chunk(
    query,
    selection,
    m,
    c,
    M,
    stride_query_m,
    stride_query_c,
    stride_selection_m,
    stride_selection_c,
    CK: tl.constexpr,
):
    """The query [m, c]; weighted by the selection, and followed by it in the dtype of the query, where there is one."""
    mask = (m < M)[:, None] & (c < CK)[None, :]
    query_tile = tl.load(query + m[:, None] * stride_query_m + c[None, :] * stride_query_c, mask=mask, other=0.0)
    if selection is None:
        return (query_tile,)
    else:
        offsets = m[:, None] * stride_selection_m + c[None, :] * stride_selection_c
        weights = tl.load(selection + offsets, mask=mask, other=0.0)
        return (query_tile * weights).to(query_tile.dtype), weights.to(query_tile.dtype)
