"""The tile of the Hopper kernel, and which reads it takes."""

from dataclasses import dataclass

import torch
from torch import Tensor

ARCHITECTURE = 90
VALUE_DIM = 512
WIDEST_KEY = 128
DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class HopperConfig:
    """Tile of forward_hopper.py.

    block_m: queries of a program, all of one wgmma
    block_n: memory rows of a step
    block_k: key columns, the width of keys or more
    half:    value columns of a warp group
    stages:  steps of which keys, values and weights are in shared memory
    maxnreg: registers of a thread, times 384 threads: what the warp groups share out among themselves
    """

    block_m: int = 64
    block_n: int = 64
    block_k: int = 128
    half: int = VALUE_DIM // 2
    stages: int = 2
    num_warps: int = 4
    maxnreg: int = 168


def hopper_config(key_dim: int) -> HopperConfig:
    """The tile for Ck up to WIDEST_KEY."""
    return HopperConfig(block_k=64 if key_dim <= 64 else 128)


ALL_HOPPER_CONFIGS = (hopper_config(64), hopper_config(128))


def hopper_reasons(query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    """Why the Hopper kernel cannot read these tensors [B, rows, C]; empty where it can."""
    reasons = []
    if value.dtype not in DTYPES:
        reasons.append(f"it has no kernel for {value.dtype}")
    if value.shape[2] != VALUE_DIM:
        reasons.append(f"it takes values of {VALUE_DIM} channels, found {value.shape[2]}")
    if key.shape[2] > WIDEST_KEY:
        reasons.append(f"it takes keys of at most {WIDEST_KEY} channels, found {key.shape[2]}")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        reasons += [f"{name}: {reason}" for reason in _copy_reasons(tensor)]
    return reasons


def _copy_reasons(tensor: Tensor) -> list[str]:
    """Why TMA cannot copy tiles of a tensor seen as one matrix [B * rows, C]."""
    batch, rows, _ = tensor.shape
    if tensor.numel() == 0:
        return ["it is empty"]
    between_objects, between_rows, between_columns = tensor.stride()
    if between_columns != 1:
        return [f"its rows are not contiguous (strides {tensor.stride()})"]
    reasons = []
    if tensor.storage_offset() * tensor.element_size() % 16 or between_rows * tensor.element_size() % 16:
        reasons.append(f"its rows do not start at multiples of 16 bytes (strides {tensor.stride()})")
    if between_rows < tensor.shape[2] or (batch > 1 and (between_objects <= 0 or between_objects % between_rows)):
        reasons.append(f"its objects are no whole number of rows apart (strides {tensor.stride()})")
    elif ((batch - 1) * between_objects // between_rows + rows) >= 2**31:
        reasons.append("it has more rows than a 32-bit coordinate reaches")
    return reasons
