"""Checks of the arguments of memory_read() and related functions."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from stm_fast.arguments import flag, integer, number
from stm_fast.ops.inputs import accumulation_dtype, requires_grad
from stm_fast.torch_private import FakeTensor


def check_tensors(optional: Collection[str] = (), **arguments: Tensor | None) -> None:
    """Raises TypeError for an argument that is not a strided tensor, or for a mix of real and fake tensors.

    Args:
        optional: names of the arguments that may be None.
        arguments: the arguments by name.
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
    """Raises TypeError for fake tensors of different modes, or real ones that their mode does not allow."""
    modes = {name: tensor.fake_mode for name, tensor in tensors.items() if isinstance(tensor, FakeTensor)}
    if not modes:
        return
    one, mode = next(iter(modes.items()))
    for name in tensors:
        if name in modes and modes[name] is not mode:
            raise TypeError(f"{name}: found a fake tensor of another FakeTensorMode than that of {one}")
        if name not in modes and not mode.allow_non_fake_inputs:
            raise TypeError(f"{name}: found a real tensor, expected a fake one like {one}")


def as_scale(scale: Any) -> float | None:
    """The factor of the scores as a float. Raises TypeError for anything but a number or None."""
    return None if scale is None else number(_host_number(scale, "scale"), "scale", "a number or None")


def as_top_k(top_k: Any) -> int | None:
    """The number of rows as an int. Raises TypeError for anything but an integer or None."""
    return None if top_k is None else integer(_host_number(top_k, "top_k"), "top_k", "an integer or None")


def _host_number(found: Any, name: str) -> Any:
    """Returns the argument; raises TypeError for a tensor whose conversion would stall a device or lose a gradient."""
    if isinstance(found, Tensor):
        if found.device.type != "cpu":
            raise TypeError(f"{name}: found a tensor on {found.device}, expected a number: reading it would stall")
        if requires_grad((found,)):
            raise TypeError(
                f"{name}: found a tensor that requires a gradient, expected a number; multiply query by it instead"
            )
    return found


def check_scale(scale: float | None, dtype: torch.dtype) -> None:
    """Raises ValueError for a factor that is NaN or infinite in the accumulation dtype of inputs of `dtype`."""
    # while a graph is traced it may be a symbol, whose value must not be used
    if scale is None or torch.compiler.is_compiling():
        return
    accumulation = accumulation_dtype(dtype)
    if not math.fabs(scale) <= torch.finfo(accumulation).max:
        raise ValueError(f"scale: found {scale}, expected a finite number of {accumulation}")


def check_flags(**flags: Any) -> None:
    """Raises TypeError for anything but True or False."""
    for name, found in flags.items():
        if found is not True and found is not False:
            # known calls are looked up by it, and the value of a tensor may change
            if isinstance(found, Tensor):
                raise TypeError(f"{name}: found {type(found).__name__}, expected True or False")
            flag(found, name)
