"""The tile of the Hopper kernel, and the reads that it supports."""

from dataclasses import dataclass

from torch import Tensor

from stm_fast.kernels.problem import Problem
from stm_fast.kernels.similarity import DOT

ARCHITECTURE = 90
VALUE_DIM = 512
WIDEST_KEY = 128
# pairs of a query and a memory row, of all objects: both kernels take about 23 us for a memory of one frame, but
# launching one with TMA descriptors takes the host longer
FEWEST_PAIRS = 2**22


@dataclass(frozen=True)
class HopperConfig:
    """Tile of forward_hopper.py.

    block_m: queries of a program, one wgmma
    block_n: memory rows of a step
    block_k: key columns, at least the width of keys
    half:    value columns of a warp group
    stages:  steps of which keys, values and weights are in shared memory
    maxnreg: registers per thread on average; the warp groups divide 384 times as many among themselves
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


def is_for_hopper(problem: Problem) -> bool:
    """Whether to use the Hopper kernel: for 16-bit dot reads, widths of its tiles, and tensors that TMA can copy."""
    (batch, rows, value_dim), key_dim = problem.value.shape, problem.key.shape[2]
    return (
        problem.target.architecture == ARCHITECTURE
        and problem.arithmetic == "half"
        and problem.similarity == DOT
        and key_dim <= WIDEST_KEY
        and value_dim == VALUE_DIM
        and batch * problem.query.shape[1] * rows >= FEWEST_PAIRS
        and all(map(_is_matrix, (problem.query, problem.key, problem.value)))
    )


def _is_matrix(tensor: Tensor) -> bool:
    """Whether [B, rows, C] is one matrix [B * rows, C] with rows that start at multiples of 16 bytes."""
    batch, rows, width = tensor.shape
    if tensor.numel() == 0:
        return False
    between_objects, between_rows, between_columns = tensor.stride()
    return (
        between_columns == 1
        and between_rows >= width
        and (between_rows * tensor.element_size()) % 16 == 0
        and tensor.data_ptr() % 16 == 0
        and (batch == 1 or between_objects % between_rows == 0)
        # a 32-bit coordinate reaches every row
        and (batch - 1) * between_objects // between_rows + rows < 2**31
    )
