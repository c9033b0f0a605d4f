"""The device that a network runs on. The name can be checked without importing torch."""

import re
from typing import TYPE_CHECKING

from stm_fast.errors import InputError, option

if TYPE_CHECKING:
    import torch

_DEVICES = re.compile(r"auto|cpu|cuda(:[0-9]{1,4})?")


def check_device(name: str) -> None:
    """Raises InputError for anything but auto, cpu, cuda or cuda:N."""
    if name == "mps":
        instead = f"expected {option('device', 'cpu')}, which works on Apple's machines"
        raise InputError(f"{option('device')}: found 'mps', which is not supported, {instead}")
    if _DEVICES.fullmatch(name) is None:
        raise InputError(f"{option('device')}: found {name[:40]!r}, expected auto, cpu, cuda or cuda:N")


def choose_device(name: str, local_rank: int = 0) -> "torch.device":
    """The device of that name; "auto" is a CUDA device if there is one, otherwise the CPU.

    Args:
        local_rank: of this process among those on this machine, which "auto" distributes over the devices.

    Raises:
        InputError: not a name of a device, or no such device on this machine.
    """
    check_device(name)
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", local_rank % count) if count else torch.device("cpu")
    _, _, number = name.partition(":")
    if name != "cpu" and int(number or 0) >= count:
        raise InputError(f"{option('device')}: found {name!r}, but this machine has {count} CUDA devices")
    return torch.device(name)
