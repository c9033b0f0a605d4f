"""The gradients of queries and selection: sums over memory rows of G k, block after block.

A block is split into parts, as the memory is in the forward read; each object is at least one part. Each part adds to a
float32 sum, and the sums are added in a fixed order at the end.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import choose_splits, grad_query_config
from stm_fast.kernels.grad_scores import Block
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import length_of, load_tile, row_at
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.similarity import key_term, query_term_gradients
from stm_fast.kernels.tiles import ceil_div


class QuerySums(NamedTuple):
    """The sums of each part, float32; there are as many parts for each object of the query."""

    grad: Tensor  # sum_j G_ij k_j [Bq, parts, M, Ck]
    terms: Tensor | None  # sum_j G_ij f(k_j) [Bq, parts, M, Ck], f the key term, where there is a selection
    mass: Tensor | None  # sum_j G_ij [Bq, parts, M], where the score has its query term

    def gradients(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """The gradients [Bq, M, Ck] of queries and selection."""
        query, selection = problem.query, problem.selection
        grad_query = self.grad.sum(1)
        grad_selection = None if self.terms is None else query * grad_query + self.terms.sum(1)
        if self.mass is not None:
            by_query, by_selection = query_term_gradients(query, self.mass.sum(1))
            grad_query = grad_query - by_query
            grad_selection = None if grad_selection is None else grad_selection - by_selection
        if selection is not None:
            grad_query = grad_query * selection
        return grad_query.to(query.dtype), grad_selection


def new_query_sums(problem: Problem, rows: int) -> QuerySums:
    """Sums of 0, for blocks of at most `rows` memory rows."""
    config = grad_query_config(problem.choice)
    batch = problem.value.shape[0]
    owners, queries, key_dim = problem.query.shape
    programs = ceil_div(queries, config.block_m) * ceil_div(key_dim, config.block_c) * batch
    splits = choose_splits(problem.target, programs, ceil_div(rows, config.block_n))
    shape = (owners, batch // max(1, owners) * splits, queries, key_dim)
    grad = problem.query.new_zeros(shape, dtype=torch.float32)
    terms = None if problem.selection is None else torch.zeros_like(grad)
    mass = None if problem.norms is None else grad.new_zeros(shape[:3])
    return QuerySums(grad, terms, mass)


def plan_grad_query(problem: Problem, block: Block, sums: QuerySums) -> Launch:
    """The launch that adds what the block adds to the sums."""
    config = grad_query_config(problem.choice)
    owners, parts, queries, key_dim = sums.grad.shape
    batch = problem.value.shape[0]
    # object after object, part after part: also in the order of the sums
    grid = (ceil_div(queries, config.block_m), ceil_div(key_dim, config.block_c), owners * parts)
    arguments = {**problem.product_arguments(), "grad_raw": block.grad_raw, "sums": sums, "place": block.place}
    splits = parts * owners // max(1, batch)
    return Launch.of(_grad_query_kernel, grid, config, **arguments, splits=splits)


@triton.jit
def _grad_query_kernel(operands, grad_raw, sums, strides, splits, place, M, N, FORM: tl.constexpr, TILE: tl.constexpr):
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    BLOCK_C: tl.constexpr = TILE.block_c
    part = tl.program_id(2).to(tl.int64)
    b = part // splits
    first_query = tl.program_id(0).to(tl.int64) * BLOCK_M
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    length = tl.minimum(length_of(operands.lengths, b, N) - place.first, place.rows)  # of the block
    rows_per_part = tl.cdiv(tl.cdiv(place.rows, BLOCK_N), splits) * BLOCK_N
    start = (part % splits).to(tl.int32) * rows_per_part
    end = tl.minimum(start + rows_per_part, length)
    grad_raw += (b * place.padded + first_query) * place.width + start
    key = row_at(operands.key, strides.key, b, place.first + start)

    # the parts of a query follow each other as the objects do
    row = part * M + first_query + m
    valid_m = m < M - first_query
    offsets = row[:, None] * FORM.key_dim + c[None, :]
    mask = valid_m[:, None] & (c < FORM.key_dim)[None, :]
    grad_sum = tl.load(sums.grad + offsets, mask=mask, other=0.0)
    if sums.terms is not None:
        terms_sum = tl.load(sums.terms + offsets, mask=mask, other=0.0)
    if sums.mass is not None:
        mass_sum = tl.load(sums.mass + row, mask=valid_m, other=0.0)
    for first_row in range(start, end, BLOCK_N):
        grad_tile = tl.load(grad_raw + m[:, None] * place.width + n[None, :])
        key_mask = (n < end - first_row)[:, None]
        if FORM.key_dim % BLOCK_C != 0:
            key_mask = key_mask & (c < FORM.key_dim)[None, :]
        # rows that do not count may hold NaN
        key_tile = load_tile(key, strides.key, n[:, None], c[None, :], key_mask)
        grad_sum = tl.dot(grad_tile, key_tile, grad_sum, input_precision=FORM.precision)
        if sums.terms is not None:
            term = key_term(key_tile.to(tl.float32), FORM.similarity).to(key_tile.dtype)
            terms_sum = tl.dot(grad_tile, term, terms_sum, input_precision=FORM.precision)
        if sums.mass is not None:
            mass_sum += tl.sum(grad_tile.to(tl.float32), 1)
        grad_raw += BLOCK_N
        key += BLOCK_N * strides.key[1]
    tl.store(sums.grad + offsets, grad_sum, mask=mask)
    if sums.terms is not None:
        tl.store(sums.terms + offsets, terms_sum, mask=mask)
    if sums.mass is not None and tl.program_id(1) == 0:
        tl.store(sums.mass + row, mass_sum, mask=valid_m)
