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
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.scores import grad_weights, raw_scores, softmax_weights

MOST_PAIRS = 2**26  # of a query and a memory row in a block: 128 MiB of weights in 16 bits, and as much of gradients


class Block(NamedTuple):
    """Some memory rows of all objects. The tensors fill whole tiles: they are 0 beyond M and N."""

    first: int  # its first row
    rows: int
    weight: Tensor  # P [B, M up to whole tiles, rows up to whole tiles], in the dtype of the inputs, contiguous
    grad_raw: Tensor  # G, likewise


def rows_of_a_block(problem: Problem) -> int:
    """How many memory rows a block has, but for the last one: blocks of about the same size."""
    batch, rows = problem.value.shape[:2]
    pairs = max(1, batch * whole_tiles(problem.query.shape[1]))
    most = max(1, MOST_PAIRS // pairs // LARGEST_TILE) * LARGEST_TILE
    return whole_tiles(max(1, triton.cdiv(rows, max(1, triton.cdiv(rows, most)))))


def whole_tiles(count: int) -> int:
    """`count` queries or memory rows, filled up to whole tiles of any kernel."""
    return triton.cdiv(count, LARGEST_TILE) * LARGEST_TILE


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
    arguments = {
        **problem.score_arguments(),
        **problem.value_arguments(),
        "lse": lse,
        "totals": totals,
        "delta": delta,
        "grad_out": grad_out,
        "weight": weight,
        "grad_raw": grad_raw,
        "grad_shrinkage": grad_shrinkage,
        "first": first,
        "width": shape[2],
        "BASE_2": problem.base_2,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_V": config.block_v,
    }
    # tiles of queries side by side: they read the same keys and values
    grid = (tiles, shape[2] // config.block_n, batch)
    return Block(first, rows, weight, grad_raw), grad_shrinkage, Launch(_grad_scores_kernel, grid, arguments, config)


@triton.jit
def _grad_scores_kernel(
    query,
    key,
    value,
    shrinkage,
    selection,
    lengths,
    norms,
    lse,
    totals,
    delta,
    grad_out,
    weight,
    grad_raw,
    grad_shrinkage,
    first,
    width,
    M,
    N,
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
    BASE_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    b = tl.program_id(2).to(tl.int64)
    first_query = tl.program_id(0).to(tl.int64) * BLOCK_M
    column = tl.program_id(1).to(tl.int64) * BLOCK_N
    start = first + column
    length = N
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid_m, valid_n = m < M - first_query, n < length - start
    row = b * M + first_query
    if selection is not None:
        selection += b * stride_selection_b + first_query * stride_selection_m
    norms_tile = None
    if norms is not None:
        norms_tile = tl.load(norms + b * stride_norms_b + first_query + m, mask=valid_m, other=0.0)
    raw = raw_scores(
        query + b * stride_query_b + first_query * stride_query_m,
        selection,
        norms_tile,
        key + b * stride_key_b + start * stride_key_n,
        m,
        n,
        valid_m,
        valid_n,
        stride_query_m,
        stride_query_c,
        stride_selection_m,
        stride_selection_c,
        stride_key_n,
        stride_key_c,
        CK,
        L2,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    factor = score_factor
    if shrinkage is not None:
        shrinkage += b * stride_shrinkage_b + start * stride_shrinkage_n
        factor = (tl.load(shrinkage + n * stride_shrinkage_n, mask=valid_n, other=0.0) * score_factor)[None, :]
    lse_tile = tl.load(lse + row + m, mask=valid_m, other=0.0)
    total_tile = None
    if totals is not None:
        total_tile = tl.load(totals + row + m, mask=valid_m, other=1.0)
    valid = valid_m[:, None] & valid_n[None, :]
    weight_tile = softmax_weights(raw, factor, lse_tile, total_tile, valid, BASE_2)
    width = width.to(tl.int64)
    offsets = ((b * tl.num_programs(0) * BLOCK_M + first_query + m) * width)[:, None] + (column + n)[None, :]
    tl.store(weight + offsets, weight_tile.to(weight.dtype.element_ty))

    grad_weight = grad_weights(
        grad_out + row * CV,
        value + b * stride_value_b + start * stride_value_n,
        m,
        n,
        valid_m,
        valid_n,
        stride_value_n,
        stride_value_c,
        CV,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_V,
    )
    delta_tile = tl.load(delta + row + m, mask=valid_m, other=0.0)
    grad_score = weight_tile * (grad_weight - delta_tile[:, None])  # dS
    tl.store(grad_raw + offsets, (grad_score * factor).to(grad_raw.dtype.element_ty))
    if grad_shrinkage is not None:
        # S = score_factor * shrinkage * raw
        tile = (tl.program_id(0).to(tl.int64) * tl.num_programs(2) + b) * width + column
        tl.store(grad_shrinkage + tile + n, tl.sum(grad_score * raw, 0) * score_factor)
