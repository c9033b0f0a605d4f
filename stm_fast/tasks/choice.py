"""The network that a command runs, before it is loaded."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from stm_fast.choices import Arch, CompileMode, Precision
from stm_fast.errors import InputError, option
from stm_fast.network.device import check_device
from stm_fast.network.places import file_of, find_weights
from stm_fast.network.released import DEFAULT, FILES


@dataclass(frozen=True)
class NetworkChoice:
    """A network, and how to run it.

    Args:
        weights: as for :func:`stm_fast.load`: a checkpoint, "default" or "open", or a repository of the hub.
        arch: an untrained network instead of the default weights.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" selects the fastest one of the device.
        compile: a mode of torch.compile.

    Raises:
        InputError: no such checkpoint or device, or both weights and an untrained network.
    """

    weights: str | Path = DEFAULT
    arch: Arch | None = None
    device: str = "auto"
    dtype: Precision = "float32"
    compile: CompileMode | None = None

    def __post_init__(self) -> None:
        if self.arch is not None and str(self.weights) != DEFAULT:
            raise InputError(
                f"{option('arch')}: found {self.arch} with {option('weights', self.weights)}, expected one of them"
            )
        check_device(self.device)
        find_weights(self.weights)

    @property
    def file(self) -> Path | None:
        """The file of the weights; None if they are on the hub."""
        return file_of(find_weights(self.weights))

    def absolute(self) -> "NetworkChoice":
        """The choice for a process with another working folder."""
        is_path = str(self.weights) not in FILES and os.path.exists(self.weights)
        return replace(self, weights=os.path.abspath(self.weights)) if is_path else self

    @property
    def untrained(self) -> bool:
        """Whether the network is untrained."""
        return self.arch is not None
