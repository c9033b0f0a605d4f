"""The tiles of the read of a quantized memory."""

from dataclasses import dataclass

import torch

WIDEST_KEY = 256
DTYPES = (torch.int8, torch.float8_e4m3fn)
OLDEST_FP8 = 89  # the first architecture that multiplies fp8


@dataclass(frozen=True)
class QuantizedConfig:
    """Tile of forward_quantized.py: queries, memory rows of a step, and value columns of a program."""

    block_m: int
    block_n: int
    block_v: int
    num_warps: int
    num_stages: int


def quantized_config(architecture: int, regular: bool, value_dim: int) -> QuantizedConfig:
    """The tile, that of a wide accumulator which stays in registers; `regular` as for forward_config()."""
    if not regular:
        return QuantizedConfig(64, 32, 64, 8, 2)
    if architecture in (90, 100):
        return QuantizedConfig(64, 64, 128 if value_dim <= 128 else 256, 8, 2)
    return QuantizedConfig(64, 32, 128, 8, 2)
