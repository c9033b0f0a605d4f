"""The gradients of queries and selection: sums over memory rows of G k, block after block.

A block is cut into parts, as the memory is in the forward read, and each object is a part of its own. A part has a sum
in float32 that it adds to; in the end they are summed in one order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import choose_splits, grad_query_config
from stm_fast.kernels.grad_scores import Block
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.problem import Problem, strides


class QuerySums(NamedTuple):
    """The sums of each part, float32; there are as many parts for each object of the query."""

    grad: Tensor  # sum_j G_ij k_j [Bq, parts, M, Ck]
    squares: Tensor | None  # sum_j G_ij k_j^2 / 2 [Bq, parts, M, Ck], where there is a selection
    mass: Tensor | None  # sum_j G_ij [Bq, parts, M], where the score has its query term

    def gradients(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """The gradients [Bq, M, Ck] of queries and selection."""
        query, selection = problem.query, problem.selection
        grad_query, grad_selection = self.grad.sum(1), None
        if self.squares is not None:
            grad_selection = query * grad_query - self.squares.sum(1)
        if self.mass is not None:
            pulled = query * self.mass.sum(1)[..., None]
            grad_query = grad_query - pulled
            grad_selection = None if grad_selection is None else grad_selection - 0.5 * query * pulled
        if selection is not None:
            grad_query = grad_query * selection
        return grad_query.to(query.dtype), grad_selection


def new_query_sums(problem: Problem, rows: int) -> QuerySums:
    """Sums of 0, for blocks of at most `rows` memory rows."""
    config = grad_query_config(problem.choice)
    batch = problem.value.shape[0]
    owners, queries, key_dim = problem.query.shape
    programs = triton.cdiv(queries, config.block_m) * triton.cdiv(key_dim, config.block_c) * batch
    splits = choose_splits(problem.target, programs, triton.cdiv(rows, config.block_n))
    shape = (owners, batch // max(1, owners) * splits, queries, key_dim)
    grad = problem.query.new_zeros(shape, dtype=torch.float32)
    squares = None if problem.selection is None else torch.zeros_like(grad)
    mass = None if problem.norms is None else grad.new_zeros(shape[:3])
    return QuerySums(grad, squares, mass)


def plan_grad_query(problem: Problem, block: Block, sums: QuerySums) -> Launch:
    """The launch that adds what the block adds to the sums."""
    config = grad_query_config(problem.choice)
    owners, parts, queries, key_dim = sums.grad.shape
    batch = problem.value.shape[0]
    arguments = {
        "key": problem.key,
        "lengths": problem.lengths,
        "grad_raw": block.grad_raw,
        "sums": sums.grad,
        "squares": sums.squares,
        "mass": sums.mass,
        "splits": parts * owners // max(1, batch),
        "first": block.first,
        "rows": block.rows,
        "width": block.grad_raw.shape[2],
        "padded": block.grad_raw.shape[1],
        "M": queries,
        "N": problem.key.shape[1],
        **strides("key", problem.key.expand(batch, -1, -1), "bnc"),
        "CK": key_dim,
        "PRECISION": problem.precision,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_C": config.block_c,
    }
    # object after object, part after part: also in the order of the sums
    grid = (triton.cdiv(queries, config.block_m), triton.cdiv(key_dim, config.block_c), owners * parts)
    return Launch(_grad_query_kernel, grid, arguments, config)


@triton.jit
def _grad_query_kernel(
    key,
    lengths,
    grad_raw,
    sums,
    squares,
    mass,
    splits,
    first,
    rows,
    width,
    padded,
    M,
    N,
    stride_key_b,
    stride_key_n,
    stride_key_c,
    CK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    part = tl.program_id(2).to(tl.int64)
    b = part // splits
    first_query = tl.program_id(0).to(tl.int64) * BLOCK_M
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    length = N
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
    length = tl.minimum(length - first, rows)  # of the block
    rows_per_part = tl.cdiv(tl.cdiv(rows, BLOCK_N), splits) * BLOCK_N
    start = (part % splits).to(tl.int32) * rows_per_part
    end = tl.minimum(start + rows_per_part, length)
    grad_raw += (b * padded + first_query) * width + start
    key += b * stride_key_b + (first + start).to(tl.int64) * stride_key_n

    # the parts of a query follow each other as the objects do
    row = part * M + first_query + m
    offsets = row[:, None] * CK + c[None, :]
    mask = (m < M - first_query)[:, None] & (c < CK)[None, :]
    grad = tl.load(sums + offsets, mask=mask, other=0.0)
    if squares is not None:
        squares_tile = tl.load(squares + offsets, mask=mask, other=0.0)
    if mass is not None:
        mass_tile = tl.load(mass + row, mask=m < M - first_query, other=0.0)
    for first_row in range(start, end, BLOCK_N):
        grad_tile = tl.load(grad_raw + m[:, None] * width + n[None, :])
        key_mask = (n < end - first_row)[:, None]
        if CK % BLOCK_C != 0:
            key_mask = key_mask & (c < CK)[None, :]
        # rows that do not count may hold NaN
        key_tile = tl.load(key + n[:, None] * stride_key_n + c[None, :] * stride_key_c, mask=key_mask, other=0.0)
        grad = tl.dot(grad_tile, key_tile, grad, input_precision=PRECISION)
        if squares is not None:
            half_square = (0.5 * key_tile.to(tl.float32) * key_tile.to(tl.float32)).to(key_tile.dtype)
            squares_tile = tl.dot(grad_tile, half_square, squares_tile, input_precision=PRECISION)
        if mass is not None:
            mass_tile += tl.sum(grad_tile.to(tl.float32), 1)
        grad_raw += BLOCK_N
        key += BLOCK_N * stride_key_n
    tl.store(sums + offsets, grad, mask=mask)
    if squares is not None:
        tl.store(squares + offsets, squares_tile, mask=mask)
    if mass is not None and tl.program_id(1) == 0:
        tl.store(mass + row, mass_tile, mask=m < M - first_query)
