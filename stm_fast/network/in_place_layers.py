"""ResNet blocks that add up in place: a sum of large maps needs no third one, nor a pass of its own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.network.backbone import BasicBlock, Bottleneck
from stm_fast.ops.room import ROOM


class PointwiseConv(nn.Module):
    """A convolution of 1 x 1 as the matrix product that it is, with the weights of another one."""

    weight: Tensor  # [C, K]
    bias: Tensor  # [K]

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._stride = int(conv.stride[0])
        self.register_buffer("weight", conv.weight.detach().flatten(1).T.contiguous())
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H / stride, W / stride]``, channels last."""
        x = x[:, :, :: self._stride, :: self._stride]
        batch, _, height, width = x.shape
        rows = _rows(x)
        out = ROOM.empty(x, len(rows), self.weight.shape[1])
        torch.addmm(self.bias, rows, self.weight, out=out)
        return out.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to ``[B, K, H, W]``, which is overwritten where it is channels last."""
        out = _rows(residual).add_(self.bias).addmm_(_rows(x), self.weight)
        return out.view(-1, *residual.shape[2:], out.shape[1]).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as ``[B*H*W, C]``, a view where it is channels last."""
    return x.detach().permute(0, 2, 3, 1).flatten(0, 2)


class InPlaceBlock(nn.Module):
    """A block of a ResNet whose BatchNorm is folded. It overwrites its input where that is the residual.

    Args:
        block: whose last convolution has `add_to`.
    """

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convs = [getattr(block, f"conv{index}", None) for index in (1, 2, 3)]
        *first, self.last = (conv for conv in convs if conv is not None)
        self.first = nn.ModuleList(first)
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H', W']``."""
        h = x
        for conv in self.first:
            h = F.relu_(conv(h))
        residual = x if self.downsample is None else self.downsample(x)
        added: Tensor = self.last.add_to(residual, h)
        return F.relu_(added)
