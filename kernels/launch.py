"""A kernel with everything it is launched with, so that it can be run on a device or compiled without one."""

from typing import Any, NamedTuple, Protocol

import torch

from stm_fast.kernels.tiles import Arithmetic


class AnyLaunch(Protocol):
    """What can be launched: Launch, and GluonLaunch of forward_hopper.py."""

    @property
    def kernel(self) -> Any: ...

    @property
    def grid(self) -> tuple[int, int, int]: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    @property
    def options(self) -> dict[str, Any]: ...

    def run(self) -> None: ...


class Launch(NamedTuple):
    """One launch of one Triton kernel.

    config:    the entry of configs.py behind it; its num_warps and num_stages are launch options.
    dependent: it may start before the launch before it has ended, and waits in its kernel for that.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    config: Any
    dependent: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler and the launcher are told."""
        options = {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}
        return options | ({"launch_pdl": True} if self.dependent else {})

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
