"""A kernel with everything it is launched with, so that it can be run on a device or compiled without one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from stm_fast.kernels.tiles import Arithmetic


class AnyLaunch(Protocol):
    """What can be launched: Launch, and GluonLaunch of experimental/forward_hopper.py."""

    @property
    def kernel(self) -> Any: ...

    @property
    def grid(self) -> tuple[int, int, int]: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    @property
    def options(self) -> dict[str, Any]: ...

    def run(self) -> None: ...

    def operands(self) -> Callable[..., Sequence[Any]] | None:
        """What makes the first arguments of the kernel of a problem's tensors; None: these are one argument."""


class Launch(NamedTuple):
    """One launch of one Triton kernel; config, the entry of configs.py behind it, has its launch options too."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    config: Any

    @classmethod
    def of(cls, kernel: Any, grid: tuple[int, int, int], config: Any, **arguments: Any) -> "Launch":
        """A launch with the kernel's arguments by name; TILE is the config."""
        return cls(kernel, grid, {**arguments, "TILE": config}, config)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler and the launcher."""
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}

    def operands(self) -> None:
        return None

    def run(self) -> None:
        if 0 not in self.grid:
            self.kernel[self.grid](**self.arguments, **self.options)


def arithmetic_of(dtype: torch.dtype) -> Arithmetic:
    """The arithmetic for a dtype.

    float32 is exact, unless PyTorch is allowed TF32: then it is three TF32 products, nearly as accurate.
    """
    if dtype != torch.float32:
        return "half"
    return "tf32x3" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
