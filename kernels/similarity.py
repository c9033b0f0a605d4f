"""The kinds of raw score: all that depends on which of them a read has.

    raw_ij = <e_i q_i, k_j> + <e_i, f(k_j)> - h_i            e the selection, 1 without

| similarity | f(k)     | h, where there is a query term | factor of the score |
|------------|----------|--------------------------------|---------------------|
| DOT        | 0        | 0                              | scale               |
| L2         | -k^2 / 2 | <e_i, q_i^2> / 2               | 2 scale             |

The score is S_ij = factor * shrinkage_j * raw_ij. f(0) is 0, because tiles are padded with channels of 0.
"""

import triton
import triton.language as tl
from torch import Tensor

DOT, L2 = 0, 1  # as in SIMILARITIES of stm_fast/choices.py
KINDS = (DOT, L2)
_L2 = tl.constexpr(L2)


def score_factor(similarity: int, scale: float) -> float:
    """What raw scores are multiplied by."""
    return 2 * scale if similarity == L2 else scale


def has_key_term(similarity: int) -> bool:
    """Whether f is not 0."""
    return similarity != DOT


@triton.jit
def key_term(key, SIMILARITY: tl.constexpr):
    """f(k) of keys in float32."""
    if SIMILARITY == _L2:
        return -0.5 * key * key


@triton.jit
def key_slope(key, SIMILARITY: tl.constexpr):
    """The derivative of f(k)."""
    if SIMILARITY == _L2:
        return -key


def key_slopes(similarity: int, key: Tensor) -> Tensor:
    """As key_slope(), of a tensor, where has_key_term()."""
    return -key


def half_norms(query: Tensor, selection: Tensor | None) -> Tensor:
    """The query term h [B, M] float32 of L2, <e_i, q_i^2> / 2."""
    square = query.float().square()
    return 0.5 * (square if selection is None else square * selection).sum(-1)


def query_term_gradients(query: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Those of sum_i mass_i h_i [B, M, Ck], mass [B, M]: by the query, but for its factor e, and by the selection."""
    by_query = query * mass[..., None]
    return by_query, 0.5 * query * by_query


def channel_slopes(similarity: int, query_term: bool, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """raw_ij = sum_c e_ic r_ijc: the derivative of r by the query, and r itself, the derivative by the selection."""
    if similarity == DOT:
        return key, query * key
    if query_term:
        return key - query, -0.5 * (key - query).square()
    return key, query * key - 0.5 * key.square()
