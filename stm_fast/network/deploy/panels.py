"""Weights in the order in which the C++ extension's products read them: panels of 16 columns."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = 16  # of a panel


def packed(weight: Tensor) -> Tensor:
    """Packs a weight ``[K, depth]`` as ``[ceil(K / 16), depth, 16]``, padded with zeros.

    In bfloat16, adjacent depths are interleaved: ``[ceil(K / 16), ceil(depth / 2), 16, 2]``.
    """
    columns = padded(weight.T)  # [depth, K up to 16]
    panels = columns.shape[1] // COLUMNS
    if weight.dtype == torch.bfloat16:
        pairs = F.pad(columns, (0, 0, 0, columns.shape[0] % 2)).view(-1, 2, panels, COLUMNS)
        return pairs.permute(2, 0, 3, 1).contiguous()
    return columns.view(-1, panels, COLUMNS).transpose(0, 1).contiguous()


def padded(rows: Tensor) -> Tensor:
    """Pads the last dimension with zeros to whole panels."""
    return F.pad(rows.detach(), (0, -rows.shape[-1] % COLUMNS)).contiguous()


def bias(conv: nn.Conv2d) -> Tensor:
    """The bias of a convolution, zero if it has none: ``[K rounded up to a multiple of 16]``, float32."""
    return padded(conv.weight.new_zeros(conv.out_channels).float() if conv.bias is None else conv.bias.float())
