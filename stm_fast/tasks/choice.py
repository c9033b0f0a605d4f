"""The network that a command runs, before it is loaded."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from stm_fast.choices import Arch, CompileMode, Precision
from stm_fast.errors import InputError, option, require_file
from stm_fast.network.released import DEFAULT, FILES, MIN_SIZE, weights_file

_DEVICES = re.compile(r"auto|cpu|cuda(:[0-9]{1,4})?")


@dataclass(frozen=True)
class NetworkChoice:
    """A network, and how to run it.

    Args:
        weights: a checkpoint; "default" and "open" are those of the package.
        arch: an untrained network instead of the default weights.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" selects the fastest one of the device.
        compile: a mode of torch.compile.

    Raises:
        InputError: no such checkpoint or device, or both weights and an untrained network.
    """

    weights: Path = Path(DEFAULT)
    arch: Arch | None = None
    device: str = "auto"
    dtype: Precision = "float32"
    compile: CompileMode | None = None

    def __post_init__(self) -> None:
        if self.arch is not None and str(self.weights) != DEFAULT:
            raise InputError(
                f"{option('arch')}: found {self.arch} with {option('weights', self.weights)}, expected one of them"
            )
        if self.device == "mps":
            instead = f"expected {option('device', 'cpu')}, which works on Apple's machines"
            raise InputError(f"{option('device')}: found 'mps', which is not supported, {instead}")
        if _DEVICES.fullmatch(self.device) is None:
            raise InputError(f"{option('device')}: found {self.device[:40]!r}, expected auto, cpu, cuda or cuda:N")
        require_file(self.file, "a checkpoint")

    @property
    def file(self) -> Path:
        """The file of the weights."""
        return weights_file(self.weights)

    @property
    def untrained(self) -> bool:
        """Whether the network is untrained."""
        return self.arch is not None

    def smallest_side(self, min_size: int | None, max_size: int | None = None) -> int:
        """`min_size` of the `VideoSegmenter`: as requested, otherwise the one that suits the weights."""
        if min_size is not None:
            return min_size
        if self.untrained or os.path.realpath(self.file) not in map(str, FILES.values()):
            return 1
        return MIN_SIZE if max_size is None else min(MIN_SIZE, max_size)
