"""Memories with which to measure the error of quantized reads, the exact read, and the roundings of the C++ engine."""

import math

import torch
from torch import Tensor

from stm_fast.ops.functional import memory_read, merge_reads
from stm_fast.ops.quantized import QuantizedMemory

# of the C++ engine: csrc/cpu/quantized_forward.cpp and quantized_queries.h
_DIRECTIONS = 3
_LARGEST_DIRECTION = 2047
_LARGEST_WEIGHT = 254
_MOST_ROWS = {torch.int8: 384, torch.float8_e4m3fn: 192}


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


def rounded_read(query: Tensor, memory: QuantizedMemory, lengths: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """out and lse of a quantized memory in float64, rounded where the C++ engine rounds to multiply stored numbers.

    Queries are rounded, and the weights of each block of rows: to bytes for int8, to bfloat16 for fp8.
    """
    batch, slots, rows, value_dim = memory.value.shape
    reads = []
    for object_ in range(batch):
        one = QuantizedMemory(*(tensor[object_ % len(tensor)].double() for tensor in memory))
        queries = query[object_ % len(query)].double()
        count = slots * rows if lengths is None else lengths[object_]
        parts = [(queries.new_zeros(1, len(queries), value_dim), queries.new_full((1, len(queries)), -math.inf))]
        for slot in range(slots):
            for block in _blocks(rows, min(rows, count - slot * rows), _MOST_ROWS[memory.key.dtype]):
                parts.append(_rounded_part(queries, one, slot, block, memory.key.dtype))
        reads.append(merge_reads(*zip(*parts, strict=True)))
    outs, lses = zip(*reads, strict=True)
    return torch.cat(outs), torch.cat(lses)


def _blocks(slot_rows: int, count: int, most: int) -> list[slice]:
    """The first `count` rows of a slot in the blocks of whole slots: of nearly equal size, in whole groups of four."""
    rows = -(-slot_rows // -(-slot_rows // most))
    rows += -rows % 4
    return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]


def _rounded_part(
    query: Tensor, memory: QuantizedMemory, slot: int, block: slice, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """out [1, M, Cv] and lse [1, M] of some rows of a slot of one object."""
    key, value = (tensor[slot, block] for tensor in (memory.key * memory.key_scale, memory.value * memory.value_scale))
    rounded = _query_of_bytes(query) if dtype == torch.int8 else query.bfloat16().double()
    score = (rounded @ key.mT + query @ memory.key_mean[slot].mT) / math.sqrt(query.shape[1])
    largest = score.amax(1, keepdim=True)
    weight = (score - largest).exp()
    bytes_ = _weights_of_bytes(weight) if dtype == torch.int8 else weight.float().bfloat16().double()
    total = weight.sum(1, keepdim=True)
    return (bytes_ @ value / total)[None], (largest + total.log()).mT


def _query_of_bytes(query: Tensor) -> Tensor:
    """Queries [M, Ck] in steps of a 127th of their largest number, once three directions are taken out."""
    if len(query) == 0:
        return query
    left, size = query.clone(), query.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    for index in range(_DIRECTIONS):
        relative = left / size
        chosen = relative.mean(0) if index == 0 else relative[relative.abs().amax(1).argmax()]
        direction = (chosen * _LARGEST_DIRECTION / chosen.abs().max().clamp_min(1e-30)).round()
        left -= (left @ direction / direction.square().sum().clamp_min(1))[:, None] * direction
    step = (left.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
    return query - left + (left / step).round() * step


def _weights_of_bytes(weight: Tensor) -> Tensor:
    """Weights [M, rows] as bytes, each with the rounding error of the row before it."""
    scaled, pending, rounded = weight * _LARGEST_WEIGHT, torch.zeros_like(weight[:, 0]), torch.empty_like(weight)
    for row in range(weight.shape[1]):
        rounded[:, row] = (scaled[:, row] + pending).round()
        pending = pending + scaled[:, row] - rounded[:, row]
    return rounded / _LARGEST_WEIGHT
