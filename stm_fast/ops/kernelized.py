"""The kernelized memory read of KMN (Seong et al., ECCV 2020): memory rows are read near their best query pixels."""

import math
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn.functional import pad

from stm_fast.arguments import integer, number
from stm_fast.ops.arguments import as_scale, check_tensors
from stm_fast.ops.functional import cast_for_autocast, check_read_tensors, memory_read
from stm_fast.ops.inputs import in_channels

# from the center of a larger frame, coordinates are not exact in bfloat16, or distances are infinite in float16
LARGEST_IN_16_BITS = 511


class KernelizedOptions(TypedDict, total=False):
    """The options of memory_read() that a kernelized read has."""

    lengths: Tensor | None
    top_k: SupportsIndex | None
    return_lse: bool
    return_usage: bool
    return_top_k: bool
    backend: str


def kernelized_memory_read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sigma: SupportsFloat,
    size: Sequence[int],
    scale: SupportsFloat | None = None,
    **options: Unpack[KernelizedOptions],
) -> Tensor | tuple[Tensor, ...]:
    """``memory_read`` with a Gaussian around the best query pixel of each memory row.

    ``S_ij = scale * <q_i, k_j> - |p_i - p_j|^2 / (2 sigma^2)``: p_i is the place of query pixel i, and p_j that of the
    pixel with the largest product with key j, of equal ones the first. Exact on every backend: the Gaussian is a few
    more channels of query and key. The choice of p_j has no derivative; the others are those of memory_read().

    Args:
        query: ``[B or 1, M, Ck]``; `key`: ``[B or 1, N, Ck]``; `value`: ``[B, N, Cv]``, as for memory_read().
        sigma: the standard deviation of the Gaussian in pixels of the query frame (at stride 16); KMN and MiVOS: 7.
        size: height and width of the query frame, with M pixels.
        scale: factor of the products, default ``1 / sqrt(Ck)``.
        options: lengths, top_k (the k largest of the whole scores, as in MiVOS), return_lse, return_usage,
            return_top_k and backend, as for memory_read().

    Returns:
        As memory_read().

    Raises:
        TypeError, ValueError: as memory_read(); sigma is not positive; size is not that of the query, or in a 16-bit
            dtype larger than 511.
        NotImplementedError: a named backend that cannot run these inputs, with its reasons.
    """
    check_tensors(query=query, key=key, value=value)
    sigma, scale = number(sigma, "sigma"), as_scale(scale)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: found {sigma:g}, expected a positive number")
    query, key, value = cast_for_autocast(query, key, value)
    check_read_tensors(query, key, value)
    height, width = _size(size, query)
    scale = 1 / math.sqrt(query.shape[2]) if scale is None else scale
    if query.shape[1] == 0:
        return memory_read(query, key, value, scale=scale, **options)
    y, x = torch.arange(height, device=query.device), torch.arange(width, device=query.device)
    places = torch.cartesian_prod(y - height // 2, x - width // 2)  # [M, 2]
    best = _best_queries(query, key, scale, options.get("backend", "auto"))  # [B or 1, N]
    variance = sigma * sigma
    return memory_read(
        _with_places(query * (scale * variance), places[None], first=True),
        _with_places(key, places[best], first=False),
        value,
        scale=1 / variance,
        **options,
    )


def _size(size: Sequence[int], query: Tensor) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise TypeError(f"size: found {size!r}, expected the height and width of the query frame")
    height, width = (integer(length, "size") for length in size)
    if height < 0 or height * width != query.shape[1]:
        raise ValueError(f"size: found {height} x {width}, expected that of {query.shape[1]} query pixels")
    if query.dtype.itemsize == 2 and max(height, width) > LARGEST_IN_16_BITS:
        most = f"{LARGEST_IN_16_BITS} x {LARGEST_IN_16_BITS} pixels in {query.dtype}"
        raise ValueError(f"size: found {height} x {width}, expected at most {most}")
    return height, width


@torch.no_grad()
def _best_queries(query: Tensor, key: Tensor, scale: float, backend: str) -> Tensor:
    """The query pixel of largest score of each memory row: a read with the roles of query and memory exchanged."""
    batch = max(query.shape[0], key.shape[0])
    nothing = query[..., :0].expand(batch, -1, -1)
    _, _, rows = memory_read(key, query, nothing, scale=scale, top_k=1, return_top_k=True, backend=backend)
    return rows.squeeze(-1).clamp(min=0)  # [batch, N]


def _with_places(features: Tensor, places: Tensor, *, first: bool) -> Tensor:
    """Features [B, rows, C] after channels of their places [B or 1, rows, 2], for one of both sides of the product.

    The product of these channels is -|p_i - p_j|^2 / 2 = p_i p_j - |p_i|^2 / 2 - |p_j|^2 / 2, of numbers that are exact
    in every dtype. They come first: sums over channels are exact until the others are added.
    """
    dtype = features.dtype
    norms = in_channels(-0.5 * places.square().sum(-1).double(), dtype)
    ones = torch.ones_like(norms)
    channels = [places.to(dtype), *((norms, ones) if first else (ones, norms))]
    found = torch.cat([*(part.expand(features.shape[0], -1, -1) for part in channels), features], dim=-1)
    # Triton's tiles are a multiple of 16 channels wide
    return pad(found, (0, -found.shape[-1] % 16)) if found.is_cuda else found
