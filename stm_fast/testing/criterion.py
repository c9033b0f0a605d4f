"""The float64 criterion: how far from the exact result a fused one may be.

As in the tests of FlashAttention, the error against float64 is compared with that of eager PyTorch in the same dtype.
That error shows what the dtype allows, so no tolerance is chosen by hand.

It is not a fair measure if eager happens to be exact: the gradients of a read of one row are differences of equal
numbers, and a float64 eager read is the exact result itself. Any other order of summation differs by rounding. So the
measure is the larger of eager's error and that of the exact computation with every sum rounded once
(stm_fast.testing.rounding).
"""

import math

import torch
from torch import Tensor

Results = dict[str, Tensor]  # out, lse, usage, grad_query, ... by name

FACTOR = 2.0


def assert_no_worse_than_eager(fused: Results, eager: Results, rounded: Results, exact: Results) -> None:
    """Asserts that no fused tensor has more than FACTOR times the larger error of `eager` and `rounded`.

    Two roundings of the largest value (eps times it) are allowed in addition. -inf must be -inf in the exact result
    too; other values that are not finite fail. Tensors of `rounded` may have several results along a first dimension.

    Raises:
        AssertionError: with the name of the tensor, its error and the allowed error.
    """
    for name, found in fused.items():
        assert found.shape == exact[name].shape, f"{name}: shape {found.shape}, expected {exact[name].shape}"
        error, allowed = distance(found, exact[name]), allowance(found.dtype, eager[name], rounded[name], exact[name])
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def allowance(dtype: torch.dtype, eager: Tensor, rounded: Tensor, exact: Tensor) -> float:
    """The largest absolute error that a result in `dtype` may have."""
    if exact.numel() == 0:
        return 0.0
    largest = float(exact.masked_fill(exact == -math.inf, 0).abs().max())
    by_eager, by_rounding = distance(eager, exact), distance(rounded, exact)
    # the error of an eager result that overflowed is no measure
    measure = max(by_eager, by_rounding) if math.isfinite(by_eager) else by_rounding
    return FACTOR * measure + torch.finfo(dtype).eps * largest


def distance(approximate: Tensor, exact: Tensor) -> float:
    """The largest absolute difference from float64; inf if any value is not finite, unless both are -inf."""
    if exact.numel() == 0:
        return 0.0
    equal_infinities = (approximate == -math.inf) & (exact == -math.inf)
    difference = (approximate.double() - exact.double()).abs().masked_fill(equal_infinities, 0)
    return float(difference.nan_to_num(nan=math.inf, posinf=math.inf).max())
