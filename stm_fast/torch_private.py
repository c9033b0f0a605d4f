"""The private names of PyTorch that this package uses, under names that say what they are for.

Any release of PyTorch may move them. No other module uses any, and tests/test_torch_private.py reports missing ones.
"""

from importlib import import_module
from typing import IO

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as in_functional_transform
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C import (
    _dispatch_has_kernel_for_dispatch_key,
    _is_tracing,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C import _is_any_autocast_enabled as is_any_autocast_enabled
from torch._subclasses.fake_tensor import FakeTensor, is_fake
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "FakeTensor",
    "TorchDispatchMode",
    "below_autograd",
    "compile_failure",
    "compile_package",
    "cpp_compiler",
    "has_cpu_kernel",
    "in_forward_mode",
    "in_functional_transform",
    "is_any_autocast_enabled",
    "is_fake",
    "is_watched",
    "mark_dynamic",
    "tree_leaves",
]


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives are computed."""
    return forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether operators are transformed, recorded or traced."""
    return (
        in_functional_transform()
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or _is_tracing()
    )


def has_cpu_kernel(operator: str) -> bool:
    """Whether an operator such as "stm_fast::winograd_convolution" has an implementation for the CPU."""
    return _dispatch_has_kernel_for_dispatch_key(operator, "CPU")


def compile_failure() -> type[Exception]:
    """The base class of the errors of torch.compile. Importing it takes as long as importing torch."""
    failure: type[Exception] = import_module("torch._dynamo.exc").TorchDynamoException
    return failure


def mark_dynamic(tensor: Tensor, dimension: int) -> None:
    """Tells torch.compile that the size of a dimension varies."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def cpp_compiler() -> str:
    """The C++ compiler of torch.compile and AOTInductor. Raises RuntimeError if there is none."""
    compiler: str = import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    return compiler


def compile_package(program: torch.export.ExportedProgram, file: IO[bytes]) -> None:
    """Compiles a program with AOTInductor into a package, which ``torch._inductor.aoti_load_package`` loads."""
    import_module("torch._inductor").aoti_compile_and_package(program, package_path=file)
