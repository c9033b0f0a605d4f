"""Random inputs of a memory read, stored as a route reads them best."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stm_fast.benchmarking.shapes import Shape
from stm_fast.benchmarking.workload import KEY_DIM, VALUE_DIM
from stm_fast.ops.quantised import QuantisedMemory, quantise_memory

# how the storage of [B, rows, C] lies: row by row, or channel by channel as convolutions leave it, or quantised by row
Layout = Literal["rows", "channels", "int8", "fp8"]
BYTES: dict[Layout, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# of the float32 copies that are there at once while a number of the memory is quantised
QUANTISING_BYTES = 16


class Inputs(NamedTuple):
    """What a route is given."""

    query: Tensor  # [1, M, Ck], one for all objects
    memory: tuple[Tensor, ...]  # key [O, N, Ck] and value [O, N, Cv], or a QuantisedMemory of them
    upstream: Tensor  # [O, M, Cv], the gradient of the read


def make_inputs(shape: Shape, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Standard normal numbers: constant ones would cost a GPU less power, and so run at a higher clock."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    return Inputs(
        normal(1, shape.queries, KEY_DIM),
        (normal(shape.objects, shape.rows, KEY_DIM), normal(shape.objects, shape.rows, VALUE_DIM)),
        normal(shape.objects, shape.queries, VALUE_DIM),
    )


def in_layout(inputs: Inputs, layout: Layout) -> Inputs:
    """The same numbers, stored as `layout` says; the shapes of floats stay."""
    if layout == "rows":
        return inputs
    if layout in BYTES:
        return inputs._replace(memory=_quantised(inputs.memory, inputs.query.shape[1], BYTES[layout]))
    memory = tuple(map(_by_channel, inputs.memory))
    return Inputs(_by_channel(inputs.query), memory, _by_channel(inputs.upstream))


def _by_channel(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


def _quantised(memory: tuple[Tensor, ...], frame: int, dtype: torch.dtype) -> QuantisedMemory:
    """A slot for each frame of so many rows; one slot where the memory is no whole number of frames."""
    rows = memory[0].shape[1]
    rows_of_slot = frame if rows % frame == 0 else rows
    key, value = (tensor.view(len(tensor), -1, rows_of_slot, tensor.shape[2]) for tensor in memory)
    return quantise_memory(key, value, dtype)
