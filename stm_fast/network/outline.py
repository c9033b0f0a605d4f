"""A network's names and shapes, without values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from stm_fast.network.architecture import Architecture
from stm_fast.network.stm import STM

_INITIALIZERS = (
    *("normal_", "uniform_", "fill_", "zero_", "mul_", "copy_", "empty_like"),
    *("constant_", "kaiming_normal_", "kaiming_uniform_", "orthogonal_"),
)


class _SkipInitializers(TorchFunctionMode):
    """Skips functions that fill tensors. On the meta device, their only effect is to import PyTorch's compiler, which
    takes seconds."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", None) in _INITIALIZERS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def outline(architecture: Architecture) -> STM:
    """The network on the meta device, where it takes no memory. Raises ValueError as `STM` does."""
    with torch.device("meta"), _SkipInitializers():
        return STM(**asdict(architecture))
