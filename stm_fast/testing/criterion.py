"""The float64 criterion: how far from the exact result a fused one may be.

After FlashAttention's: a result is judged against float64, relative to the error of eager PyTorch in the same dtype.
It says what the dtype can give, so no tolerance is chosen by hand.

Eager's error alone is not a fair measure where eager is exact by luck or by construction: the gradients of a read of
one row are differences of equal numbers, a float64 eager read is the exact result itself. Any other order of the same
sums is off by their rounding. So the measure is the larger of eager's error and that of the exact computation with
every sum rounded once (stm_fast.testing.rounding), which is a computed quantity too.
"""

import math

import torch
from torch import Tensor

Results = dict[str, Tensor]  # out, lse, usage, grad_query, ... by name

FACTOR = 2.0


def assert_no_worse_than_eager(fused: Results, eager: Results, rounded: Results, exact: Results) -> None:
    """Every fused tensor is no further from `exact` than FACTOR times the further of `eager` and `rounded`.

    Two roundings, eps, of the largest value are allowed on top. -inf must be -inf in the exact result too; anything
    else that is not finite fails. A tensor of `rounded` may be several, one after the other in a first dimension.

    Raises:
        AssertionError: names the tensor, its error and what was allowed.
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
    # an eager result that overflowed measures nothing
    measure = max(by_eager, by_rounding) if math.isfinite(by_eager) else by_rounding
    return FACTOR * measure + torch.finfo(dtype).eps * largest


def distance(approximate: Tensor, exact: Tensor) -> float:
    """The largest absolute difference from float64: inf where a value is not finite and not -inf in both."""
    if exact.numel() == 0:
        return 0.0
    equal_infinities = (approximate == -math.inf) & (exact == -math.inf)
    difference = (approximate.double() - exact.double()).abs().masked_fill(equal_infinities, 0)
    return float(difference.nan_to_num(nan=math.inf, posinf=math.inf).max())
