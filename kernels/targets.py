"""The machines that the kernels are configured for."""

from functools import cache
from typing import NamedTuple

import torch

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may have


class Target(NamedTuple):
    """What choosing a configuration needs to know of a device.

    architecture: one of ARCHITECTURES, compute capability times ten
    processors:   streaming multiprocessors, to be kept busy
    """

    architecture: int
    processors: int


# under the interpreter everything runs on the CPU; a few processors, so that small reads are split too
INTERPRETER = Target(80, 8)


def target_of(device: torch.device) -> Target:
    """The target of a CUDA device, or the interpreter's for the CPU."""
    if device.type == "cpu":
        return INTERPRETER
    return _cuda_target(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _cuda_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    return Target(nearest_architecture(properties.major * 10 + properties.minor), properties.multi_processor_count)


def nearest_architecture(capability: int) -> int:
    """The newest of ARCHITECTURES that is not newer than `capability`; ValueError below 80."""
    known = [architecture for architecture in ARCHITECTURES if architecture <= capability]
    if not known:
        raise ValueError(f"compute capability {capability / 10}: the kernels need 8.0 or newer")
    return known[-1]
