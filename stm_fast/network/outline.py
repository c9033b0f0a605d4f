"""A network's names and shapes without its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from stm_fast.network.architecture import Architecture
from stm_fast.network.stm import STM

_FILLING = (
    *("normal_", "uniform_", "fill_", "zero_", "mul_", "copy_", "empty_like"),
    *("constant_", "kaiming_normal_", "kaiming_uniform_", "orthogonal_"),
)


class _NoNumbers(TorchFunctionMode):
    """Skips functions that fill tensors: on the meta device they do nothing but import PyTorch's compiler, which takes
    seconds."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", None) in _FILLING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def outline(architecture: Architecture) -> STM:
    """The network on the meta device, which takes no memory. Raises ValueError as `STM` does."""
    with torch.device("meta"), _NoNumbers():
        return STM(**asdict(architecture))
