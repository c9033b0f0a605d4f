"""A launch whose kernel is compiled and whose arguments were looked at, for all launches that follow it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from stm_fast.kernels.launch import AnyLaunch


class CompiledLaunch:
    """A launch to be run with any tensors of the layouts that it was made with.

    Tensors, descriptors of them, or tuples of tensors are the first parameters of a kernel. Triton reads, types and
    specializes every argument of every launch, which takes longer than the launch; here that is done once. The device
    has to be current.
    """

    def __init__(self, launch: AnyLaunch) -> None:
        arguments = [launch.arguments[name] for name in launch.kernel.arg_names]
        is_fixed = [not _has_tensor(argument) for argument in arguments]
        self._fixed = arguments[len(arguments) - is_fixed[::-1].index(False) :]
        self._grid = launch.grid
        self._is_empty = 0 in launch.grid
        compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
        self.interpreted = compiled is None  # by Triton's interpreter, which takes tensors alone
        if self.interpreted:
            self._kernel, self._options = launch.kernel[launch.grid], launch.options
        else:
            self._compiled, self._start = compiled, compiled.run
            self._handle = compiled.function, compiled.packed_metadata
            self._device, self._stream = driver.active.get_current_device(), driver.active.get_current_stream

    def run(self, *tensors: Any) -> None:
        """Launches it on the current stream of its device; a tensor may be given as its address, compiled."""
        if self._is_empty:
            return
        if self.interpreted:
            self._kernel(*tensors, *self._fixed, **self._options)
            return
        stream, metadata = self._stream(self._device), None
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        # a hook of Triton's is None, a function, or a chain of functions, which is mostly empty
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
            metadata = self._compiled.launch_metadata(self._grid, stream, *tensors, *self._fixed)
        else:
            enter = leave = None
        self._start(*self._grid, stream, *self._handle, metadata, enter, leave, *tensors, *self._fixed)


def _has_tensor(argument: Any) -> bool:
    if isinstance(argument, tuple):
        return any(map(_has_tensor, argument))
    return isinstance(argument, Tensor) or isinstance(getattr(argument, "base", None), Tensor)


def blank(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of one element that torch.empty_like makes contiguous ones of: the quickest way to a new tensor."""
    return like.new_empty(1, dtype=dtype).expand(shape)
