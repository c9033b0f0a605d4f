"""What memory_read() and its relatives are called with: tensors that kernels can look into, numbers, flags."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from stm_fast.arguments import flag, integer, number
from stm_fast.ops.inputs import accumulation_dtype, requires_grad
from stm_fast.torch_private import FakeTensor


def check_tensors(optional: Collection[str] = (), **arguments: Tensor | None) -> None:
    """Raises TypeError where an argument is no tensor, or one that no kernel can look into.

    Args:
        optional: the names of those that may be None.
        arguments: by their names: strided tensors, all of them real, or all of them fake.
    """
    for name, tensor in arguments.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            expected = "a tensor or None" if name in optional else "a tensor"
            raise TypeError(f"{name}: found {type(tensor).__name__}, expected {expected}")
        if tensor.is_nested:
            raise TypeError(f"{name}: found a nested tensor, expected one with a shape")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name}: found a tensor of layout {tensor.layout}, expected torch.strided")
    if not torch.compiler.is_compiling():
        _check_same_kind({name: tensor for name, tensor in arguments.items() if tensor is not None})


def _check_same_kind(tensors: dict[str, Tensor]) -> None:
    """Raises TypeError for fake tensors of several modes, or beside real ones where their mode does not allow it."""
    modes = {name: tensor.fake_mode for name, tensor in tensors.items() if isinstance(tensor, FakeTensor)}
    if not modes:
        return
    one, mode = next(iter(modes.items()))
    for name in tensors:
        if name in modes and modes[name] is not mode:
            raise TypeError(f"{name}: found a fake tensor of another FakeTensorMode than that of {one}")
        if name not in modes and not mode.allow_non_fake_inputs:
            raise TypeError(f"{name}: found a real tensor, expected a fake one as {one} is")


def as_scale(scale: Any) -> float | None:
    """The factor of the scores as a float. Raises TypeError for what is no number at hand."""
    return None if scale is None else number(_at_hand(scale, "scale"), "scale", "a number or None")


def as_top_k(top_k: Any) -> int | None:
    """The number of rows as an int. Raises TypeError for what is no integer at hand."""
    return None if top_k is None else integer(_at_hand(top_k, "top_k"), "top_k", "an integer or None")


def _at_hand(found: Any, name: str) -> Any:
    """The argument; raises TypeError for a tensor that a number cannot stand for without a stall or a lost gradient."""
    if isinstance(found, Tensor):
        if found.device.type != "cpu":
            raise TypeError(f"{name}: found a tensor on {found.device}, expected a number: to read it would wait")
        if requires_grad((found,)):
            raise TypeError(
                f"{name}: found a tensor that requires a gradient, expected a number; multiply query by it instead"
            )
    return found


def check_scale(scale: float | None, dtype: torch.dtype) -> None:
    """Raises ValueError for a factor that is NaN or infinite in the dtype in which scores of `dtype` are summed."""
    # graphs may have made it a symbol, which is not to be looked at
    if scale is None or torch.compiler.is_compiling():
        return
    summed = accumulation_dtype(dtype)
    if not math.fabs(scale) <= torch.finfo(summed).max:
        raise ValueError(f"scale: found {scale}, expected a finite number of {summed}")


def check_flags(**flags: Any) -> None:
    """Raises TypeError for what is neither True nor False."""
    for name, found in flags.items():
        if found is not True and found is not False:
            # a known call is told by it, and a tensor may change
            if isinstance(found, Tensor):
                raise TypeError(f"{name}: found {type(found).__name__}, expected True or False")
            flag(found, name)
