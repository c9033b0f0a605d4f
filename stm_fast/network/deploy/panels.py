"""Weights and images in the order in which the C++ extension reads them: panels of 16 columns, channels last."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = 16  # of a panel


def packed(weight: Tensor) -> Tensor:
    """Packs a weight ``[K, depth]`` as `pack_columns` of its transpose."""
    return pack_columns(padded(weight.T))


def pack_columns(columns: Tensor) -> Tensor:
    """Packs weights ``[..., depth, K]`` from `padded` as ``[..., K / 16, depth, 16]``.

    In bfloat16, adjacent depths are interleaved: ``[..., K / 16, ceil(depth / 2), 16, 2]``.
    """
    *some, depth, width = columns.shape
    panels = columns.reshape(*some, depth, width // COLUMNS, COLUMNS)
    if columns.dtype == torch.bfloat16:
        even = F.pad(panels, (0, 0, 0, 0, 0, depth % 2))
        pairs = even.reshape(*some, -1, 2, width // COLUMNS, COLUMNS)
        return pairs.movedim((-2, -4, -1, -3), (-4, -3, -2, -1)).contiguous()
    return panels.transpose(-2, -3).contiguous()


def padded(rows: Tensor) -> Tensor:
    """Pads the last dimension with zeros to whole panels."""
    return F.pad(rows.detach(), (0, -rows.shape[-1] % COLUMNS)).contiguous()


def bias(conv: nn.Conv2d) -> Tensor:
    """The bias of a convolution, zero if it has none: ``[K rounded up to a multiple of 16]``, float32."""
    return padded(conv.weight.new_zeros(conv.out_channels).float() if conv.bias is None else conv.bias.float())


def images(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as contiguous ``[B, H, W, C]``, a view if `x` is channels last."""
    return x.detach().permute(0, 2, 3, 1).contiguous()
