"""What kernels are given of a memory read: its tensors, their strides and the form of its scores, each as one argument.

Triton takes a NamedTuple apart: an absent tensor and a stride of 1 are constants of the compiled kernel, and what is a
multiple of 16 is known to be one, as in arguments of their own. What a kernel is compiled with is read by its fields
alone: a method is not part of the key of Triton's cache. Triton 3.6 returns no None within a tuple from a function, and
takes neither a field for an element of a tuple nor a text for an argument; a local constexpr serves.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

Steps = tuple[int, ...]


class Operands(NamedTuple):
    """The tensors of a memory read, as in Problem, or anything that stands for them at a launch."""

    query: Any
    key: Any
    value: Any
    shrinkage: Any
    selection: Any
    lengths: Any
    norms: Any


class Strides(NamedTuple):
    """The strides of the operands by the same names; the first is 0 for a tensor that all objects share."""

    query: Steps
    key: Steps
    value: Steps
    shrinkage: Steps | None
    selection: Steps | None
    norms: Steps | None


@dataclass(frozen=True)
class Form:
    """Compile-time properties of the scores.

    key_term:  whether the raw score has a term of the key alone (similarity.py).
    precision: the input_precision of tl.dot.
    base_2:    whether weights are made as powers of 2 (Problem.base_2).
    """

    key_dim: int
    similarity: int
    key_term: bool
    precision: str
    base_2: bool


def steps(tensor: Tensor) -> Steps:
    """The strides, 0 for dimensions of one element, whose strides in PyTorch are arbitrary."""
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@triton.jit
def row_at(tensor, strides, b, row):
    """Where a row of object b starts; nothing for an absent tensor."""
    if tensor is not None:
        return tensor + (b * strides[0] + tl.cast(row, tl.int64) * strides[1])


@triton.jit
def load_numbers(tensor, position, mask, other: tl.constexpr = 0.0):
    """The numbers at positions from the pointer on; nothing for an absent tensor."""
    if tensor is not None:
        return tl.load(tensor + position, mask=mask, other=other)


@triton.jit
def load_tile(tensor, strides, row, column, mask):
    """The tile at rows and columns, one of them [:, None] and the other [None, :], counted from the pointer's row."""
    return tl.load(tensor + (row * strides[1] + column * strides[2]), mask=mask, other=0.0)


@triton.jit
def length_of(lengths, b, N):
    """How many memory rows count."""
    if lengths is None:
        return N
    else:
        return tl.minimum(tl.maximum(tl.load(lengths + b), 0), N)


@triton.jit
def rows_of_part(part, parts, length, BLOCK_N: tl.constexpr):
    """The first row of a part of the memory, and the end: parts are whole blocks, but for the last that has any row."""
    rows_per_part = tl.cdiv(tl.cdiv(length, BLOCK_N), parts) * BLOCK_N
    start = tl.minimum(part * rows_per_part, length)
    return start, tl.minimum(start + rows_per_part, length)
