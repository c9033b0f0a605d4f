"""torch.compile for parts of a network with a varying number of objects."""

import logging
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from stm_fast.choices import CompileMode
from stm_fast.errors import InputError
from stm_fast.torch_private import compile_failure, mark_dynamic

_log = logging.getLogger(__name__)


class _CompilationSwitch:
    """Shared by all parts of a network: if one fails to compile, compilation is disabled for all."""

    on = True


class CompiledCall:
    """A compiled method of a module: compiled once for one object, and once for all larger numbers.

    The first call compiles. If that fails, a warning is logged and the method runs uncompiled.
    """

    def __init__(self, method: Callable[..., Any], mode: str, switch: _CompilationSwitch) -> None:
        self._method, self._switch = method, switch
        self._compiled = torch.compile(method, mode=mode)
        self._failure = compile_failure()

    def __call__(self, *inputs: Tensor) -> Any:
        if self._switch.on:
            for tensor in inputs:
                if tensor.shape[0] > 1:  # a size of 1 is specialized anyway
                    mark_dynamic(tensor, 0)
            try:
                return self._compiled(*inputs)
            except self._failure as error:
                self._switch.on = False
                _log.warning("torch.compile: %s; the network runs without it", " ".join(str(error).split())[:200])
        return self._method(*inputs)


def compile_calls(calls: list[tuple[nn.Module, str]], mode: str) -> None:
    """Compiles methods, given as modules and names, in place.

    Raises:
        InputError: not a `CompileMode`.
    """
    if mode not in get_args(CompileMode):
        raise InputError(f"compile: found {mode!r}, expected one of {', '.join(get_args(CompileMode))}")
    switch = _CompilationSwitch()
    for module, name in calls:
        setattr(module, name, CompiledCall(getattr(module, name), mode, switch))
