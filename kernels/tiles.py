"""What a tile is, and what it is chosen by."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

# how a matrix product is done: 16-bit inputs, or float32 exactly, or float32 as three products in TF32
Arithmetic = Literal["half", "ieee", "tf32x3"]
ARITHMETICS: tuple[Arithmetic, ...] = ("half", "ieee", "tf32x3")


class Choice(NamedTuple):
    """What a tile is chosen by.

    regular:  is_regular() says so, and rows are contiguous and aligned; others need more registers for addresses.
    weighted: there is a selection, whose product with the squared keys takes registers and shared memory too.
    """

    architecture: int  # one of targets.ARCHITECTURES
    arithmetic: Arithmetic
    key_dim: int
    value_dim: int
    regular: bool
    weighted: bool


@dataclass(frozen=True)
class Chunks:
    """How columns are cut into matrix products: `count` of them, `block` columns each but for the last."""

    block: int
    count: int
    last: int

    @property
    def width(self) -> int:
        return (self.count - 1) * self.block + self.last


def ceil_div(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`. On the host triton.cdiv() takes longer than a tensor is made in."""
    return -(-count // size)


def chunks(width: int, widest: int, narrowest: int = 16) -> Chunks:
    """Columns in few products, powers of two from `narrowest` to `widest`: 80 are 64 and 16, 112 are 128.

    Only the last may be wider than what is left for it.
    """
    narrowest = min(narrowest, widest)
    width = max(narrowest, -(-width // 16) * 16)
    block = min(widest, 1 << (width.bit_length() - 1))
    count = ceil_div(width, block)
    last = max(narrowest, 1 << (width - (count - 1) * block - 1).bit_length())
    if count == 2 and last == block and 2 * block <= widest:
        return Chunks(2 * block, 1, 2 * block)
    return Chunks(block, count, last)


@dataclass(frozen=True)
class ForwardConfig:
    """Tile of the forward kernel.

    block_m:      queries of a program
    block_n:      memory rows of a step
    block_k:      key columns of one product at most; wider keys are summed in chunks
    block_v:      value columns of one accumulator [block_m, block_v] at most
    accumulators: how many of them one program holds at most
    """

    block_m: int
    block_n: int
    block_k: int
    block_v: int
    accumulators: int
    num_warps: int
    num_stages: int

    @property
    def value_width(self) -> int:
        return self.block_v * self.accumulators

    @property
    def narrowest_value(self) -> int:
        """Fewer queries than 16 a warp are shared out by columns: narrow products would be made by two warps each."""
        return 16 if self.block_m >= 16 * self.num_warps else 128


@dataclass(frozen=True)
class BackwardConfig:
    """Tile of a kernel of the backward, or of one that only makes scores.

    block_m: queries, block_n: memory rows
    block_k, block_v: columns of keys and of values in one product; block_v also those of dv that one program makes
    block_c: columns of a gradient of queries or keys that one program makes
    """

    block_m: int
    block_n: int
    block_k: int
    block_c: int
    block_v: int
    num_warps: int
    num_stages: int
