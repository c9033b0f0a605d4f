"""The ways a PyTorch user can read a memory today, beside the backends of stm_fast."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from shapes import KEY_DIM, VALUE_DIM, Shape
from stm_fast import memory_read

Inputs = tuple[Tensor, Tensor, Tensor]
Route = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Random query [1, M, Ck] (one for all objects), key [O, N, Ck] and value [O, N, Cv]."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, shape.queries, KEY_DIM), (shape.objects, shape.rows, KEY_DIM), (shape.objects, shape.rows, VALUE_DIM))
    query, key, value = (torch.randn(size, generator=generator).to(device, dtype) for size in sizes)
    return query, key, value


def published(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Matrix product, softmax, matrix product: the affinity of N x M in memory (STM section 3.2)."""
    affinity = torch.softmax(key @ query.mT / math.sqrt(query.shape[2]), dim=1)  # [O, N, M]
    return affinity.mT @ value


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own attention, which picks a backend for these widths itself."""
    return scaled_dot_product_attention(query.expand(key.shape[0], -1, -1), key, value)


def backend(name: str) -> Route:
    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = memory_read(query, key, value, backend=name)
        assert isinstance(out, Tensor)
        return out

    return read


CPU_ROUTES: dict[str, Route] = {"published": published, "sdpa": sdpa, "cpp": backend("cpp")}
GPU_ROUTES: dict[str, Route] = {"published": published, "sdpa": sdpa, "triton": backend("triton")}
