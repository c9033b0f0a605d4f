"""Random inputs of a memory read, in the layout a route reads best."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stm_fast.benchmarking.workload import KEY_DIM, VALUE_DIM, Shape

# how the storage of [B, rows, C] lies: row by row, or channel by channel as convolutions leave it
Layout = Literal["rows", "channels"]


class Inputs(NamedTuple):
    """What a route is given."""

    query: Tensor  # [1, M, Ck], one for all objects
    key: Tensor  # [O, N, Ck]
    value: Tensor  # [O, N, Cv]
    upstream: Tensor  # [O, M, Cv], the gradient of the read


def make_inputs(shape: Shape, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Standard normal numbers: constant ones would cost a GPU less power, and so run at a higher clock."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)

    return Inputs(
        normal(1, shape.queries, KEY_DIM),
        normal(shape.objects, shape.rows, KEY_DIM),
        normal(shape.objects, shape.rows, VALUE_DIM),
        normal(shape.objects, shape.queries, VALUE_DIM),
    )


def in_layout(inputs: Inputs, layout: Layout) -> Inputs:
    """The same numbers, stored as `layout` says; shapes stay."""
    if layout == "rows":
        return inputs
    return Inputs(*(tensor.mT.contiguous().mT for tensor in inputs))
