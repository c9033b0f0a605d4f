"""Calls of memory_read() like one that was checked and planned before, which go straight to its reader."""

import logging
from collections.abc import Hashable
from types import NoneType

import torch
from torch import Tensor

from stm_fast.kernels.launch import arithmetic_of
from stm_fast.kernels.plans import Plans, layout
from stm_fast.kernels.tuned import table_in_use
from stm_fast.ops.backends import logger
from stm_fast.ops.inputs import Reader, in_transform, requires_grad

READERS: Plans[Reader] = Plans()
_OPERANDS = {Tensor, NoneType}  # and no subclasses: they may want to see what is done to them


def call_of(
    tensors: tuple[Tensor | None, ...], scale: float | None, top_k: int | None, *options: Hashable
) -> Hashable:
    """What is equal for calls that differ in the numbers and addresses of their tensors alone.

    None for a call that has to be looked at each time: something else than kernels is to see it, or an argument may
    equal a valid one without being valid.
    """
    query = tensors[0]
    valid_as_equals = type(scale) in (float, NoneType) and type(top_k) in (int, NoneType)
    if query is None or not valid_as_equals or not {*map(type, tensors)} <= _OPERANDS:
        return None
    if _is_watched() or requires_grad(tensors):
        return None
    try:
        device = query.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        settings = autocast, arithmetic_of(query.dtype), table_in_use()
        call = *map(layout, tensors), scale, top_k, options, settings
        hash(call)
    except (RuntimeError, TypeError):  # a tensor without memory, or an option that is nothing like a valid one
        return None
    return call


def _is_watched() -> bool:
    """Whether something is to see the operators of a read, or how its backend is chosen."""
    return (
        in_transform()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._is_tracing()
        or logger.isEnabledFor(logging.DEBUG)
    )
