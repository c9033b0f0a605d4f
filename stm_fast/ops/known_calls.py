"""Calls of memory_read() like one that was checked and planned before, which go straight to its reader."""

import logging
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from stm_fast.kernels.launch import arithmetic_of
from stm_fast.kernels.plans import Plans, layout_of
from stm_fast.kernels.tuned import table_in_use
from stm_fast.ops.backends import Backend, logger
from stm_fast.ops.inputs import Reader, ReadInputs, ReadResult, Results, Tensors, is_autocast, without_autocast
from stm_fast.torch_private import is_any_autocast_enabled, is_watched

_READERS: Plans[Reader] = Plans()


def find(
    tensors: Tensors, scale: float | None, top_k: int | None, *options: Hashable
) -> tuple[Hashable, Reader | None]:
    """What a call shares with those that differ in numbers and addresses alone, and a reader for all of them.

    (None, None) for a call that must be checked every time: it is invalid, or it is traced or logged.
    """
    # logging tells how a backend is chosen
    if is_watched() or logger.isEnabledFor(logging.DEBUG):
        return None, None
    is_grad_enabled = torch.is_grad_enabled()
    layouts: list[Hashable] = []
    try:
        for tensor in tensors:
            if tensor is None:
                layouts.append(None)
                continue
            # a subclass may want to see what is done to it
            if type(tensor) is not Tensor or (is_grad_enabled and tensor.requires_grad):
                return None, None
            layout: Any = layout_of(tensor)
            # the imaginary part of a conjugate: its memory holds the negated numbers, every other one of them
            if 1 not in layout[1] and tensor.is_neg():
                return None, None
            layouts.append(layout)
        settings = _autocast(tensors[0]), arithmetic_of(tensors[0].dtype), table_in_use()
        call = *layouts, scale, top_k, options, settings
        return call, _READERS.get(call)
    except (AttributeError, RuntimeError, TypeError):  # None for a tensor, one without memory, a list for an option
        return None, None


def remember(call: Hashable, inputs: ReadInputs, backend: Backend[ReadInputs, ReadResult]) -> None:
    """Keeps a reader for calls like this one, where the backend that it went to has any."""
    reader = backend.reader(inputs)
    if reader is not None:
        _READERS.keep(call, _outside_autocast(reader) if is_autocast(inputs.query.device.type) else reader)


def _outside_autocast(reader: Reader) -> Reader:
    def read(*tensors: *Tensors) -> Results:
        with without_autocast(tensors[0].device):
            return reader(*tensors)

    return read


def _autocast(query: Tensor) -> object:
    """Differs where memory_read() would cast to another dtype, or not at all."""
    if not is_any_autocast_enabled():
        return False
    device = query.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
