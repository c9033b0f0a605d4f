"""The dtype that a network runs in."""

from typing import get_args

import torch

from stm_fast.choices import Precision
from stm_fast.errors import InputError

# instructions that multiply bfloat16, as torch.cpu.get_capabilities() names them
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of that name. "auto" is the fastest: 16 bits if the device has instructions for them, else float32.

    Raises:
        InputError: not a `Precision`.
    """
    if precision not in get_args(Precision):
        raise InputError(f"dtype: found {precision!r}, expected one of {', '.join(get_args(Precision))}")
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(_bfloat16_instructions())


def cpu_instructions() -> str:
    """The vector instructions that PyTorch uses, and those for bfloat16: "AVX512, AVX512_BF16" or "AVX2"."""
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *map(str.upper, _bfloat16_instructions())])


def _bfloat16_instructions() -> list[str]:
    capabilities = torch.cpu.get_capabilities()
    return [name for name in _INSTRUCTIONS if capabilities.get(name, False)]
