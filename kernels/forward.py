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
from stm_fast.kernels.operands import length_of, load_tile, row_at, rows_of_part
from stm_fast.kernels.plans import Plans
from stm_fast.kernels.problem import LOG2E, Problem
from stm_fast.kernels.read_plan import ReadPlan
from stm_fast.kernels.scores import add_products, exponential, factor_of_rows, logarithm
from stm_fast.kernels.tiles import ForwardConfig, ceil_div, chunks
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
    return ReadPlan(*plan_read(problem, splits), problem.value.dtype)


def plan_read(problem: Problem, splits: int | None = None) -> tuple[Tensor, Tensor, AnyLaunch]:
    """What plan_forward() plans, of the Hopper kernel where that is to read, but for a user's own tile."""
    module = hopper_module() if is_for_hopper(problem) else None
    if module is None or tuned_tile("forward", problem.choice, ForwardConfig) is not None:
        return plan_forward(problem, splits)
    planned: tuple[Tensor, Tensor, AnyLaunch] = module.plan_forward_hopper(problem, splits)
    return planned


@cache
def hopper_module() -> Any:
    """experimental/forward_hopper.py; None if this Triton has renamed Gluon's API, which is experimental."""
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
    value_programs = max(1, ceil_div(value_dim, config.value_width))  # without any column there is lse still
    keys = chunks(problem.key.shape[2], config.block_k)
    values = chunks(ceil_div(value_dim, value_programs), config.block_v, config.narrowest_value)
    tiles = ceil_div(queries, config.block_m)
    if splits is None:
        steps = ceil_div(rows, config.block_n)
        part_bytes = bytes_of_a_part(batch, queries, value_dim)
        splits = choose_splits(problem.target, tiles * value_programs * batch, steps, part_bytes)
    part_dtype = problem.value.dtype if splits == 1 else torch.float32
    out = problem.value.new_empty(batch, splits, queries, value_dim, dtype=part_dtype)
    lse = problem.value.new_empty(batch, splits, queries, dtype=torch.float32)
    arguments = {
        **problem.score_arguments(),
        "score_factor": problem.score_factor * (LOG2E if problem.base_2 else 1),
        "out": out,
        "lse": lse,
        "splits": splits,
        "CV": value_dim,
        "KEYS": keys,
        "VALUES": values,
        "VALUE_PROGRAMS": value_programs,
        "QUERY_HELD": problem.arithmetic == "half" and keys.count <= MOST_HELD,
    }
    return out, lse, Launch.of(_forward_kernel, (tiles, value_programs * splits, batch), config, **arguments)


@triton.jit
def _forward_kernel(
    operands,
    out,
    lse,
    strides,
    M,
    N,
    splits,
    score_factor,
    CV: tl.constexpr,
    FORM: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    VALUE_PROGRAMS: tl.constexpr,
    QUERY_HELD: tl.constexpr,
):
    """One tile of queries, one part of the memory, the columns of an accumulator for each chunk of the values.

    FORM.base_2: score_factor holds log2(e), and scores are logarithms to the base 2.
    KEYS, VALUES: the Chunks of the columns of the keys, and of the values of this program.
    QUERY_HELD: the chunks of the query are loaded once, and not again in each step.
    """
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    KEY_CHUNKS: tl.constexpr = KEYS.count
    ACCUMULATORS: tl.constexpr = VALUES.count
    BLOCK_V: tl.constexpr = VALUES.block
    LAST_V: tl.constexpr = VALUES.last
    WIDTH: tl.constexpr = (ACCUMULATORS - 1) * BLOCK_V + LAST_V
    part = tl.program_id(1) // VALUE_PROGRAMS
    value_program = tl.program_id(1) % VALUE_PROGRAMS
    b = tl.program_id(2).to(tl.int64)
    first_column = value_program * WIDTH
    start, end = rows_of_part(part, splits, length_of(operands.lengths, b, N), BLOCK_N)

    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    valid_m = m < M
    norms = row_at(operands.norms, strides.norms, b, 0)
    if norms is not None:
        norms_tile = tl.load(norms + m, mask=valid_m, other=0.0)
    key = row_at(operands.key, strides.key, b, start)
    value = row_at(operands.value, strides.value, b, start) + first_column.to(tl.int64) * strides.value[2]

    held = ()
    if QUERY_HELD:
        for i in tl.static_range(KEY_CHUNKS):
            c = _columns(i, KEYS)
            held += (_query_chunk(operands, strides, b, m, valid_m, c, FORM),)  # type: ignore[assignment]

    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulators = ()
    for i in tl.static_range(ACCUMULATORS):
        zeros = tl.zeros((BLOCK_M, BLOCK_V if i + 1 < ACCUMULATORS else LAST_V), tl.float32)
        accumulators += (zeros,)  # type: ignore[assignment]

    for first in range(start, end, BLOCK_N):
        valid = n < end - first
        # rows that do not count may hold NaN: they are never loaded, and their scores are -inf besides
        raw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in tl.static_range(KEY_CHUNKS):
            c = _columns(i, KEYS)
            key_mask = valid[None, :]
            if i * KEYS.block + (KEYS.block if i + 1 < KEYS.count else KEYS.last) > FORM.key_dim:
                key_mask = key_mask & (c < FORM.key_dim)[:, None]
            chunk = held[i] if QUERY_HELD else _query_chunk(operands, strides, b, m, valid_m, c, FORM)
            key_tile = load_tile(key, strides.key, n[None, :], c[:, None], key_mask)  # [c, BLOCK_N], transposed
            raw = add_products(raw, chunk[0], None if operands.selection is None else chunk[1], key_tile, FORM)
        if norms is not None:
            raw -= norms_tile[:, None]
        factor = factor_of_rows(operands, strides, score_factor, b, first, valid, TILE)
        score = tl.where(valid[None, :], raw * factor, -float("inf"))  # [BLOCK_M, BLOCK_N]

        new_largest = tl.maximum(largest, tl.max(score, 1))
        # where every score so far is -inf: exp(-inf - 0) is 0, exp(-inf + inf) would be NaN
        shift = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        weight = exponential(score - shift[:, None], FORM.base_2)
        rescale = exponential(largest - shift, FORM.base_2)
        total = total * rescale + tl.sum(weight, 1)
        largest = new_largest

        weight = weight.to(value.dtype.element_ty)
        updated = ()
        for i in tl.static_range(ACCUMULATORS):
            v = _columns(i, VALUES)
            value_mask = valid[:, None]
            # whether the last program's chunk may reach beyond the columns
            if (VALUE_PROGRAMS - 1) * WIDTH + i * BLOCK_V + (BLOCK_V if i + 1 < ACCUMULATORS else LAST_V) > CV:
                value_mask = value_mask & (first_column + v < CV)[None, :]
            value_tile = load_tile(value, strides.value, n[:, None], v[None, :], value_mask)
            rescaled = accumulators[i] * rescale[:, None]
            rescaled = tl.dot(weight, value_tile, rescaled, input_precision=FORM.precision)
            updated += (rescaled,)  # type: ignore[assignment]
        accumulators = updated
        key += BLOCK_N * strides.key[1]
        value += BLOCK_N * strides.value[1]

    # without any row total is 0 and so are the accumulators; lse stays -inf
    total = tl.where(total == 0, 1.0, total)
    row = (b * splits + part) * M + m
    for i in tl.static_range(ACCUMULATORS):
        column = first_column + _columns(i, VALUES)
        tl.store(
            out + row[:, None] * CV + column[None, :],
            (accumulators[i] / total[:, None]).to(out.dtype.element_ty),
            mask=valid_m[:, None] & (column < CV)[None, :],
        )
    if value_program == 0:
        tl.store(lse + row, logarithm(largest, total, FORM.base_2), mask=valid_m)


@triton.jit
def _columns(i: tl.constexpr, CHUNKS: tl.constexpr):
    """The columns of chunk i."""
    return i * CHUNKS.block + tl.arange(0, CHUNKS.block if i + 1 < CHUNKS.count else CHUNKS.last)


@triton.jit
def _query_chunk(operands, strides, b, m, valid_m, c, FORM: tl.constexpr):
    """The query [m, c]; weighted by the selection, and followed by it in the dtype of the query, where there is one."""
    query = row_at(operands.query, strides.query, b, 0)
    selection = row_at(operands.selection, strides.selection, b, 0)
    mask = valid_m[:, None] & (c < FORM.key_dim)[None, :]
    query_tile = load_tile(query, strides.query, m[:, None], c[None, :], mask)
    if selection is None:
        return (query_tile,)
    else:
        weights = load_tile(selection, strides.selection, m[:, None], c[None, :], mask)
        return (query_tile * weights).to(query_tile.dtype), weights.to(query_tile.dtype)
