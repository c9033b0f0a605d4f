"""A memory read that is timed: its shape, pass and dtype, the work in it, and random inputs in a route's layout."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from stm_fast.benchmarking.shapes import Shape
from stm_fast.choices import Dtype, Pass
from stm_fast.ops.quantized import QuantizedMemory, quantize_memory

KEY_DIM, VALUE_DIM = 128, 512  # Ck and Cv as published
TOP_K = 30  # as in XMem and Cutie
PASSES = get_args(Pass)
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype)}
# the storage of [B, rows, C]: row by row, or channel by channel as convolutions leave it, or quantized by row
Layout = Literal["rows", "channels", "int8", "fp8"]
BYTES: dict[Layout, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# of the query and the tensors of the memory: key and value, or those of a QuantizedMemory
Read = Callable[..., Tensor]
# a number of the memory, of the float32 copies that exist at once while it is quantized
QUANTIZING_BYTES = 16
# FLOP/s of torch.mm: a CPU that has no instructions for a dtype of 2 bytes is slower
_SLOWEST_PRODUCT = 2 * 1024**3


@dataclass(frozen=True)
class Workload:
    """One pass over one shape in one dtype on one kind of device."""

    shape: Shape
    dtype: torch.dtype
    pass_name: str  # one of PASSES
    device: str  # "cpu" or "cuda"

    @property
    def flop(self) -> int:
        """Of the matrix products that the pass cannot do without; softmax and selection are not counted.

        Forward: scores and weighted sum, 2 (Ck + Cv) a pair of query and memory row. Backward: the scores again, then
        the gradients of affinity, value, query and key: 2 (3 Ck + 2 Cv), whatever a route has saved. Top-k: all scores,
        and the weighted sum of k rows a query.
        """
        pairs = self.shape.affinity_elements
        if self.pass_name == "forward":
            return 2 * pairs * (KEY_DIM + VALUE_DIM)
        if self.pass_name == "backward":
            return 2 * pairs * (3 * KEY_DIM + 2 * VALUE_DIM)
        return 2 * pairs * KEY_DIM + 2 * self.shape.objects * self.shape.queries * self._selected * VALUE_DIM

    def bytes_with(self, memory_itemsize: int) -> int:
        """The least that has to be read and written: every input once, every result once.

        The memory has `memory_itemsize` bytes a number; its few scales are not counted.
        """
        shape = self.shape
        query, out = shape.queries * KEY_DIM, shape.objects * shape.queries * VALUE_DIM
        key, value = shape.objects * shape.rows * KEY_DIM, shape.objects * shape.rows * VALUE_DIM
        if self.pass_name == "top-k":
            value = shape.objects * min(shape.rows, shape.queries * self._selected) * VALUE_DIM
        once = (query + out) * self.dtype.itemsize + (key + value) * memory_itemsize
        # the backward reads inputs, out and its gradient, and writes a gradient for each input
        return 2 * once if self.pass_name == "backward" else once

    @property
    def input_bytes(self) -> int:
        """Of query, key and value."""
        return (self.shape.queries * KEY_DIM + self.memory_elements) * self.dtype.itemsize

    @property
    def memory_elements(self) -> int:
        """Of keys and values."""
        return self.shape.objects * self.shape.rows * (KEY_DIM + VALUE_DIM)

    @property
    def affinity_bytes(self) -> int:
        """Of one affinity in this dtype."""
        return self.shape.affinity_elements * self.dtype.itemsize

    @property
    def _selected(self) -> int:
        return min(TOP_K, self.shape.rows)


def dtype_name(dtype: torch.dtype) -> str:
    """float32 and not torch.float32."""
    return str(dtype).removeprefix("torch.")


def lacks_instructions(dtype: torch.dtype, flop_per_second: float) -> bool:
    """Whether a CPU whose torch.mm has this rate has no instructions for the dtype: then shares of it mean nothing."""
    return dtype.itemsize == 2 and flop_per_second < _SLOWEST_PRODUCT


class Inputs(NamedTuple):
    """What a route is given."""

    query: Tensor  # [1, M, Ck], one for all objects
    memory: tuple[Tensor, ...]  # key [O, N, Ck] and value [O, N, Cv], or a QuantizedMemory of them
    upstream: Tensor  # [O, M, Cv], the gradient of the read


def make_inputs(shape: Shape, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Standard normal numbers: with constant ones a GPU draws less power, and so runs at a higher clock."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    return Inputs(
        normal(1, shape.queries, KEY_DIM),
        (normal(shape.objects, shape.rows, KEY_DIM), normal(shape.objects, shape.rows, VALUE_DIM)),
        normal(shape.objects, shape.queries, VALUE_DIM),
    )


def in_layout(inputs: Inputs, layout: Layout) -> Inputs:
    """The same numbers in another layout; the shapes of floats stay as they are."""
    if layout == "rows":
        return inputs
    if layout in BYTES:
        return inputs._replace(memory=_quantized(inputs.memory, inputs.query.shape[1], BYTES[layout]))
    memory = tuple(map(_by_channel, inputs.memory))
    return Inputs(_by_channel(inputs.query), memory, _by_channel(inputs.upstream))


def _by_channel(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


def _quantized(memory: tuple[Tensor, ...], frame: int, dtype: torch.dtype) -> QuantizedMemory:
    """A slot for each frame of `frame` rows; a single slot where the memory is not a whole number of frames."""
    rows = memory[0].shape[1]
    rows_of_slot = frame if rows % frame == 0 else rows
    key, value = (tensor.view(len(tensor), -1, rows_of_slot, tensor.shape[2]) for tensor in memory)
    return quantize_memory(key, value, dtype)
