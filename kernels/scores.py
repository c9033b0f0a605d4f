"""The raw scores, weights and gradients of one tile of queries and memory rows, shared by all kernels.

The kinds of raw score, and what depends on them, are in similarity.py.
"""

import triton
import triton.language as tl

from stm_fast.kernels.operands import load_numbers, load_tile, row_at
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
    key,
    norms,
    valid_m,
    valid_n,
    FORM: tl.constexpr,
    TILE: tl.constexpr,
    FINE: tl.constexpr = False,
):
    """The raw scores [block_m, block_n] of the queries of object b from first_query on, and the memory rows from `key`.

    key, norms: a pointer to the first memory row, and norms_of_queries() of the queries; a caller's loop keeps them.
    FINE: whether products with a selection are made with twice the digits; for 16-bit numbers.
    """
    m, n = tl.arange(0, TILE.block_m), tl.arange(0, TILE.block_n)
    query = row_at(operands.query, strides.query, b, first_query) + m[:, None] * strides.query[1]
    selection = row_at(operands.selection, strides.selection, b, first_query)
    key += n[None, :] * strides.key[1]
    raw = tl.zeros((TILE.block_m, TILE.block_n), tl.float32)
    for first in range(0, FORM.key_dim, TILE.block_k):
        c = first + tl.arange(0, TILE.block_k)
        mask = valid_m[:, None] & (c < FORM.key_dim)[None, :]
        query_tile = tl.load(query + c[None, :] * strides.query[2], mask=mask, other=0.0)
        key_mask = valid_n[None, :] & (c < FORM.key_dim)[:, None]
        key_tile = tl.load(key + c[:, None] * strides.key[2], mask=key_mask, other=0.0)
        if selection is None:
            raw = add_products(raw, query_tile, None, key_tile, FORM)
        else:
            weights = load_tile(selection, strides.selection, m[:, None], c[None, :], mask)
            weighted = query_tile * weights
            if FINE:
                raw = add_fine_products(raw, weighted, weights, key_tile, FORM.similarity)
            else:
                dtype: tl.constexpr = key_tile.dtype
                raw = add_products(raw, weighted.to(dtype), weights.to(dtype), key_tile, FORM)
    return raw if norms is None else raw - norms[:, None]


@triton.jit
def norms_of_queries(operands, strides, b, first_query, valid_m, TILE: tl.constexpr):
    """The query terms [block_m] of the raw scores; None where these have none."""
    norms = row_at(operands.norms, strides.norms, b, first_query)
    return load_numbers(norms, tl.arange(0, TILE.block_m), valid_m)


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
def softmax_weights(raw, factor, lse, totals, valid_m, valid_n, BASE_2: tl.constexpr):
    """The affinity P [M, N] of raw scores; 0 where a query or a memory row is not valid.

    factor: that of factor_of_rows().
    lse [M]: -inf for a query without any row.
    totals [M]: None, or sum_j exp(S_ij - lse_i), which is 1 but for the rounding of lse (row_totals.py).
    BASE_2: whether to make them as powers of 2 (problem.py).
    """
    lse = tl.where(lse == -float("inf"), float("inf"), lse)
    if BASE_2:
        LOG2E: tl.constexpr = 1.4426950408889634
        factor, lse = factor * LOG2E, lse * LOG2E
    valid = valid_m[:, None] & valid_n[None, :]
    weight = tl.where(valid, exponential(raw * factor - lse[:, None], BASE_2), 0.0)
    if totals is not None:
        weight /= totals[:, None]
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
