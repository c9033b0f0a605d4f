"""Memories with which to measure the error of quantized reads, and the exact read."""

import torch
from torch import Tensor

from stm_fast.ops.functional import memory_read


def soft_memory(
    queries: int, slots: int, rows: int, key_dim: int, value_dim: int, batch: int = 2, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Normally distributed numbers: query [B, M, Ck], key [B, T, R, Ck], value [B, T, R, Cv], float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, queries, key_dim), (batch, slots, rows, key_dim), (batch, slots, rows, value_dim))
    query, key, value = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return query, key, value


def stm_like_memory(
    queries: int, slots: int, rows: int, key_dim: int, value_dim: int, batch: int = 2, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Like a network's of a video, with the shapes of soft_memory().

    Every slot repeats the queries with noise, keys share a mean, and values change little from slot to slot.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mean = 2 * normal(1, 1, key_dim)
    scene, content = normal(batch, rows, key_dim), normal(batch, rows, value_dim)
    query = scene[:, torch.arange(queries) % rows] + 0.3 * normal(batch, queries, key_dim)
    key = scene[:, None] + 0.3 * normal(batch, slots, rows, key_dim)
    value = content[:, None] + 0.3 * normal(batch, slots, rows, value_dim)
    # the factor gives a few rows most of the weight, as in a trained network
    return ((query + mean) * 2).to(device), (key + mean).to(device), value.to(device)


def exact_read(query: Tensor, key: Tensor, value: Tensor, lengths: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """out and lse in float64 of a memory [B, T, R, C] that is not quantized."""
    there = None if lengths is None else torch.tensor(lengths, device=query.device)
    flat = (tensor.double().flatten(1, 2) for tensor in (key, value))
    out, lse = memory_read(query.double(), *flat, lengths=there, return_lse=True, backend="reference")
    return out, lse


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The root mean square error, relative to that of the exact result."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())
