"""The raw scores, weights and gradients of one tile of queries and memory rows, shared by all kernels.

The kinds of raw score, and what depends on them, are in similarity.py.
"""

import triton
import triton.language as tl

from stm_fast.kernels.operands import load_tile, row_at
from stm_fast.kernels.similarity import key_term


@triton.jit
def add_products(raw, query_tile, selection_tile, key_tile, FORM: tl.constexpr):
    """raw [M, N] plus the products of one chunk of channels.

    query_tile [M, C] comes weighted by the selection; selection_tile [M, C] is None or has the dtype of the query;
    key_tile [C, N].
    """
    raw = tl.dot(query_tile, key_tile, raw, input_precision=FORM.precision)
    if FORM.key_term:
        term = key_term(key_tile.to(tl.float32), FORM.similarity)
        if selection_tile is None:
            raw += tl.sum(term, 0)[None, :]
        else:
            raw = tl.dot(selection_tile, term.to(key_tile.dtype), raw, input_precision=FORM.precision)
    return raw


@triton.jit
def add_fine_products(raw, query_tile, selection_tile, key_tile, SIMILARITY: tl.constexpr):
    """As add_products() with a selection, with twice the digits; the query, weighted, and the selection float32.

    The squares of 16-bit keys are exactly two numbers of 16 bits.
    """
    query_high, query_low = _in_two(query_tile, key_tile.dtype)
    selection_high, selection_low = _in_two(selection_tile, key_tile.dtype)
    term_high, term_low = _in_two(key_term(key_tile.to(tl.float32), SIMILARITY), key_tile.dtype)
    raw = tl.dot(query_low, key_tile, raw)
    raw = tl.dot(selection_low, term_high, raw)
    raw = tl.dot(selection_high, term_low, raw)
    raw = tl.dot(selection_high, term_high, raw)
    return tl.dot(query_high, key_tile, raw)


@triton.jit
def _in_two(tile, dtype: tl.constexpr):
    """The tile, float32, as the sum of two of a narrower dtype."""
    high = tile.to(dtype)
    return high, (tile - high.to(tl.float32)).to(dtype)


@triton.jit
def exponential(x, BASE_2: tl.constexpr):
    """2^x or e^x."""
    return tl.math.exp2(x) if BASE_2 else tl.exp(x)


@triton.jit
def logarithm(largest, total, BASE_2: tl.constexpr):
    """The natural logarithm of the sum of exponentials that is `total` relative to the largest of them.

    `largest` is an exponent to the base 2 or e.
    """
    LN2: tl.constexpr = 0.6931471805599453
    return (largest + tl.math.log2(total)) * LN2 if BASE_2 else largest + tl.log(total)


@triton.jit
def raw_scores(
    operands,
    strides,
    b,
    first_query,
    valid_m,
    first_row,
    valid_n,
    FORM: tl.constexpr,
    TILE: tl.constexpr,
    FINE: tl.constexpr = False,
):
    """The raw scores [block_m, block_n] of queries and memory rows of object b, from the first of each on.

    FINE: whether products with a selection are made with twice the digits; for 16-bit numbers.
    """
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    m, n, c = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, TILE.block_k)
    query = row_at(operands.query, strides.query, b, first_query)
    selection = row_at(operands.selection, strides.selection, b, first_query)
    norms = row_at(operands.norms, strides.norms, b, first_query)
    key = row_at(operands.key, strides.key, b, first_row)
    raw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, FORM.key_dim, TILE.block_k):
        valid_c = c < FORM.key_dim - first
        mask = valid_m[:, None] & valid_c[None, :]
        query_tile = load_tile(query + first * strides.query[2], strides.query, m[:, None], c[None, :], mask)
        mask_n = valid_n[None, :] & valid_c[:, None]
        key_tile = load_tile(key + first * strides.key[2], strides.key, n[None, :], c[:, None], mask_n)
        if selection is None:
            raw = add_products(raw, query_tile, None, key_tile, FORM)
        else:
            first_weight = selection + first * strides.selection[2]
            weights = load_tile(first_weight, strides.selection, m[:, None], c[None, :], mask)
            weighted = query_tile * weights
            if FINE:
                raw = add_fine_products(raw, weighted, weights, key_tile, FORM.similarity)
            else:
                dtype: tl.constexpr = key_tile.dtype
                raw = add_products(raw, weighted.to(dtype), weights.to(dtype), key_tile, FORM)
    if norms is not None:
        raw -= tl.load(norms + m, mask=valid_m, other=0.0)[:, None]
    return raw


@triton.jit
def factor_of_rows(operands, strides, score_factor, b, first_row, valid_n, TILE: tl.constexpr):
    """What raw scores are multiplied by: score_factor, times the shrinkage [1, block_n] where there is one."""
    shrinkage = row_at(operands.shrinkage, strides.shrinkage, b, first_row)
    if shrinkage is None:
        return score_factor
    else:
        n = tl.arange(0, TILE.block_n)
        return (tl.load(shrinkage + n * strides.shrinkage[1], mask=valid_n, other=0.0) * score_factor)[None, :]


@triton.jit
def softmax_weights(raw, factor, lse, totals, row, valid_m, valid_n, BASE_2: tl.constexpr):
    """The affinity P [M, N] of raw scores; 0 where a query or a memory row is not valid.

    factor: that of factor_of_rows().
    lse, totals: of all queries [B, M]; `row` [M] says where those of this tile are. A query without any row has lse
        -inf; totals is None, or sum_j exp(S_ij - lse_i), which is 1 but for the rounding of lse (row_totals.py).
    BASE_2: whether to make them as powers of 2 (problem.py).
    """
    lse_tile = tl.load(lse + row, mask=valid_m, other=0.0)
    lse_tile = tl.where(lse_tile == -float("inf"), float("inf"), lse_tile)
    if BASE_2:
        LOG2E: tl.constexpr = 1.4426950408889634
        factor, lse_tile = factor * LOG2E, lse_tile * LOG2E
    valid = valid_m[:, None] & valid_n[None, :]
    weight = tl.where(valid, exponential(raw * factor - lse_tile[:, None], BASE_2), 0.0)
    if totals is not None:
        weight /= tl.load(totals + row, mask=valid_m, other=1.0)[:, None]
    return weight


@triton.jit
def grad_weights(grad_out, value, strides, valid_m, valid_n, CV: tl.constexpr, FORM: tl.constexpr, TILE: tl.constexpr):
    """dP = dO V^T [block_m, block_n], the gradient of the affinity, of the rows from the pointers on."""
    BLOCK_M: tl.constexpr = TILE.block_m
    BLOCK_N: tl.constexpr = TILE.block_n
    m, n, v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, TILE.block_v)
    grad = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, CV, TILE.block_v):
        mask_m, mask_n = valid_m[:, None] & (v < CV - first)[None, :], valid_n[None, :] & (v < CV - first)[:, None]
        grad_tile = tl.load(grad_out + first + m[:, None] * CV + v[None, :], mask=mask_m, other=0.0)
        value_tile = load_tile(value + first * strides[2], strides, n[None, :], v[:, None], mask_n)
        grad = tl.dot(grad_tile, value_tile, grad, input_precision=FORM.precision)
    return grad
