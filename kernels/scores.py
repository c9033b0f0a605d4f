"""The raw scores of one tile of queries and memory rows, shared by all kernels.

    raw_ij = <q_i, k_j>                                                     dot
    raw_ij = <e_i q_i, k_j> - <e_i, k_j^2> / 2 - [query_norm] <e_i, q_i^2> / 2     l2, e the selection

The score is S_ij = factor * shrinkage_j * raw_ij, with factor = scale for dot and 2 * scale for l2.
"""

import triton
import triton.language as tl


@triton.jit
def add_products(raw, query_tile, selection_tile, key_tile, L2: tl.constexpr, PRECISION: tl.constexpr):
    """raw [M, N] plus the products of one chunk of channels.

    query_tile [M, C] comes weighted by the selection; selection_tile [M, C] is None or has the dtype of the query;
    key_tile [C, N].
    """
    raw = tl.dot(query_tile, key_tile, raw, input_precision=PRECISION)
    if L2:
        key_values = key_tile.to(tl.float32)
        half_square = -0.5 * key_values * key_values
        if selection_tile is None:
            raw += tl.sum(half_square, 0)[None, :]
        else:
            raw = tl.dot(selection_tile, half_square.to(key_tile.dtype), raw, input_precision=PRECISION)
    return raw


@triton.jit
def add_fine_products(raw, query_tile, selection_tile, key_tile):
    """As add_products() of l2 with a selection, with twice the digits; the query, weighted, and the selection float32.

    The squares of 16-bit keys are exactly two numbers of 16 bits.
    """
    key_values = key_tile.to(tl.float32)
    query_high, query_low = _in_two(query_tile, key_tile.dtype)
    selection_high, selection_low = _in_two(selection_tile, key_tile.dtype)
    square_high, square_low = _in_two(-0.5 * key_values * key_values, key_tile.dtype)
    raw = tl.dot(query_low, key_tile, raw)
    raw = tl.dot(selection_low, square_high, raw)
    raw = tl.dot(selection_high, square_low, raw)
    raw = tl.dot(selection_high, square_high, raw)
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
    query,
    selection,
    norms,
    key,
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
    CK: tl.constexpr,
    L2: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FINE: tl.constexpr = False,
):
    """The raw scores [BLOCK_M, BLOCK_N] of the queries at rows m and the memory rows n of the pointers.

    norms: half_norms() of these queries [BLOCK_M], or None.
    FINE: whether products with a selection are made with twice the digits; for 16-bit numbers.
    """
    raw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, CK, BLOCK_K):
        c = first + tl.arange(0, BLOCK_K)
        mask_m, mask_n = valid_m[:, None] & (c < CK)[None, :], valid_n[None, :] & (c < CK)[:, None]
        query_tile = tl.load(query + m[:, None] * stride_query_m + c[None, :] * stride_query_c, mask=mask_m, other=0.0)
        key_tile = tl.load(key + n[None, :] * stride_key_n + c[:, None] * stride_key_c, mask=mask_n, other=0.0)
        if selection is None:
            raw = add_products(raw, query_tile, None, key_tile, L2, PRECISION)
        else:
            offsets = m[:, None] * stride_selection_m + c[None, :] * stride_selection_c
            weights = tl.load(selection + offsets, mask=mask_m, other=0.0)
            weighted = query_tile * weights
            if FINE:
                raw = add_fine_products(raw, weighted, weights, key_tile)
            else:
                dtype: tl.constexpr = key_tile.dtype
                raw = add_products(raw, weighted.to(dtype), weights.to(dtype), key_tile, L2, PRECISION)
    if norms is not None:
        raw -= norms[:, None]
    return raw


@triton.jit
def softmax_weights(raw, factor, lse, totals, valid, BASE_2: tl.constexpr):
    """The affinity P [M, N] of raw scores, from lse [M]; 0 where `valid` [M, N] is not.

    factor: score_factor, or that times shrinkage [1, N]. A query without any row has lse -inf.
    totals: None, or sum_j exp(S_ij - lse_i) [M], which is 1 but for the rounding of lse (row_totals.py).
    BASE_2: whether to make them as powers of 2 (problem.py).
    """
    lse = tl.where(lse == -float("inf"), float("inf"), lse)
    if BASE_2:
        LOG2E: tl.constexpr = 1.4426950408889634
        factor, lse = factor * LOG2E, lse * LOG2E
    weight = tl.where(valid, exponential(raw * factor - lse[:, None], BASE_2), 0.0)
    if totals is not None:
        weight /= totals[:, None]
    return weight


@triton.jit
def grad_weights(
    grad_out,
    value,
    m,
    n,
    valid_m,
    valid_n,
    stride_value_n,
    stride_value_c,
    CV: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """dP = dO V^T [BLOCK_M, BLOCK_N], the gradient of the affinity, of the rows m and n of the pointers."""
    grad = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, CV, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        mask_m, mask_n = valid_m[:, None] & (v < CV)[None, :], valid_n[None, :] & (v < CV)[:, None]
        grad_offsets = m[:, None] * CV + v[None, :]
        grad_tile = tl.load(grad_out + grad_offsets, mask=mask_m, other=0.0)
        value_offsets = n[None, :] * stride_value_n + v[:, None] * stride_value_c
        value_tile = tl.load(value + value_offsets, mask=mask_n, other=0.0)
        grad = tl.dot(grad_tile, value_tile, grad, input_precision=PRECISION)
    return grad
