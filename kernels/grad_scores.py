"""The weights P and the gradients G of the raw scores, of a block of memory rows: what every gradient is a sum of.

They are made once, in memory, a block at a time; the products with them follow (grad_value.py, grad_key.py,
grad_query.py). A kernel that makes scores again for each gradient multiplies 1.6 times as much.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import backward_config
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.layout import LARGEST_TILE
from stm_fast.kernels.operands import length_of, load_numbers, row_at
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import factor_of_rows, grad_weights, norms_of_queries, raw_scores, softmax_weights

MOST_PAIRS = 2**26  # of a query and a memory row in a block: 128 MiB of weights in 16 bits, and as much of gradients


class Place(NamedTuple):
    """Where kernels find a block: its first row and their number, and the padded sizes of its tensors."""

    first: int
    rows: int
    padded: int
    width: int


class Block(NamedTuple):
    """Some memory rows of all objects. The tensors fill whole tiles: they are 0 beyond M and N."""

    first: int  # its first row
    rows: int
    weight: Tensor  # P [B, M up to whole tiles, rows up to whole tiles], in the dtype of the inputs, contiguous
    grad_raw: Tensor  # G, likewise

    @property
    def place(self) -> Place:
        return Place(self.first, self.rows, *self.weight.shape[1:])


def rows_of_a_block(problem: Problem) -> int:
    """How many memory rows a block has, but for the last one: blocks of about the same size."""
    batch, rows = problem.value.shape[:2]
    pairs = max(1, batch * whole_tiles(problem.query.shape[1]))
    most = max(1, MOST_PAIRS // pairs // LARGEST_TILE) * LARGEST_TILE
    return whole_tiles(max(1, -(-rows // max(1, -(-rows // most)))))


def whole_tiles(count: int) -> int:
    """`count` queries or memory rows, filled up to whole tiles of any kernel."""
    return -(-count // LARGEST_TILE) * LARGEST_TILE


def plan_grad_scores(
    problem: Problem,
    grad_out: Tensor,
    lse: Tensor,
    totals: Tensor | None,
    delta: Tensor,
    first: int,
    rows: int,
) -> tuple[Block, Tensor | None, Launch]:
    """The block of `rows` rows from `first` on, what tiles of queries add to the gradient of the shrinkage
    [tiles, B, rows up to whole tiles], and the launch that fills them.

    lse, totals (or None) and delta: [B, M] float32, contiguous.
    """
    batch, queries = lse.shape
    config = backward_config(problem.choice)
    shape = (batch, whole_tiles(queries), whole_tiles(rows))
    weight, grad_raw = problem.value.new_empty(shape), problem.value.new_empty(shape)
    tiles = shape[1] // config.block_m
    grad_shrinkage = None if problem.shrinkage is None else lse.new_empty(tiles, batch, shape[2])
    block = Block(first, rows, weight, grad_raw)
    # tiles of queries side by side: they read the same keys and values
    grid = (tiles, shape[2] // config.block_n, batch)
    launch = Launch.of(
        _grad_scores_kernel,
        grid,
        config,
        **problem.score_arguments(),
        lse=lse,
        totals=totals,
        delta=delta,
        grad_out=grad_out,
        weight=weight,
        grad_raw=grad_raw,
        grad_shrinkage=grad_shrinkage,
        first=first,
        width=shape[2],
        CV=problem.value.shape[2],
    )
    return block, grad_shrinkage, launch


@triton.jit
def _grad_scores_kernel(
    operands,
    lse,
    totals,
    delta,
    grad_out,
    weight,
    grad_raw,
    grad_shrinkage,
    strides,
    first,
    width,
    M,
    N,
    score_factor,
    CV: tl.constexpr,
    FORM: tl.constexpr,
    TILE: tl.constexpr,
):
    b = tl.program_id(2).to(tl.int64)
    first_query = tl.program_id(0).to(tl.int64) * TILE.block_m
    column = tl.program_id(1).to(tl.int64) * TILE.block_n
    start = first + column
    m, n = tl.arange(0, TILE.block_m), tl.arange(0, TILE.block_n)
    valid_m, valid_n = m < M - first_query, n < length_of(operands.lengths, b, N) - start
    row = b * M + first_query
    lse_tile, total_tile = load_numbers(lse, row + m, valid_m), load_numbers(totals, row + m, valid_m, 1.0)
    key = row_at(operands.key, strides.key, b, start)
    norms = norms_of_queries(operands, strides, b, first_query, valid_m, TILE)
    raw = raw_scores(operands, strides, b, first_query, key, norms, valid_m, valid_n, FORM, TILE)
    factor = factor_of_rows(operands, strides, score_factor, b, start, valid_n, TILE)
    weight_tile = softmax_weights(raw, factor, lse_tile, total_tile, valid_m, valid_n, FORM.base_2)
    width = width.to(tl.int64)
    offsets = ((b * tl.num_programs(0) * TILE.block_m + first_query + m) * width)[:, None] + (column + n)[None, :]
    tl.store(weight + offsets, weight_tile.to(weight.dtype.element_ty))

    value = row_at(operands.value, strides.value, b, start)
    grad_weight = grad_weights(grad_out + row * CV, value, strides.value, valid_m, valid_n, CV, FORM, TILE)
    delta_tile = tl.load(delta + row + m, mask=valid_m, other=0.0)
    grad_score = weight_tile * (grad_weight - delta_tile[:, None])  # dS
    tl.store(grad_raw + offsets, (grad_score * factor).to(grad_raw.dtype.element_ty))
    if grad_shrinkage is not None:
        # S = score_factor * shrinkage * raw
        tile = (tl.program_id(0).to(tl.int64) * tl.num_programs(2) + b) * width + column
        tl.store(grad_shrinkage + tile + n, tl.sum(grad_score * raw, 0) * score_factor)
