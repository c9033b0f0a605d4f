"""Convolutions of 1x1, and the blocks of ResNets around them, in float32 and bfloat16 on a CPU.

A convolution of 1x1 is a product of all pixels with a matrix. Bias, residual sum and ReLU are part of it, so that maps
are written once. The loops are in the C++ extension; csrc/include/stm_fast/convolution.h explains them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.errors import InputError
from stm_fast.network.backbone import BasicBlock, Bottleneck
from stm_fast.network.deploy import panels
from stm_fast.network.deploy.winograd import WinogradConv
from stm_fast.ops import cpp_ops

torch.library.define(
    "stm_fast::convolution",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, int kernel, int stride, bool add, bool relu) -> ()",
)
torch.library.register_fake("stm_fast::convolution", lambda *_: None)  # only writes to `out`


def absent_reasons() -> list[str]:
    """Why the extension's convolution is not available; empty if it is."""
    return cpp_ops.operator_absent_reasons("stm_fast::convolution")


class PointwiseConv(nn.Module):
    """Replaces a 1x1 convolution; without gradients. Results are rounded once, after sum and ReLU.

    Raises:
        InputError: the operator does not support the convolution, see `fits`.
    """

    weight: Tensor  # [ceil(K / 16), C, 16], or in pairs of bfloat16 [ceil(K / 16), C / 2, 16, 2]
    bias: Tensor  # [K rounded up to a multiple of 16], float32

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if not fits(conv):
            raise InputError(f"conv: found {conv}, expected 1x1, float32, or bfloat16 with products and even channels")
        self.register_buffer("weight", panels.packed(conv.weight.flatten(1)))
        self.register_buffer("bias", panels.bias(conv))
        self._channels, self._stride = conv.out_channels, int(conv.stride[0])

    def forward(self, x: Tensor, added: Tensor | None = None, relu: bool = False) -> Tensor:
        """``[B, C, H, W]``, preferably channels last, to ``[B, K, ceil(H / stride), ceil(W / stride)]``.

        Args:
            x: in the dtype of the convolution.
            added: of the shape of the result, which is written over it if it is channels last.
            relu: whether negative results become 0.

        Returns:
            Channels last.

        Raises:
            RuntimeError: another dtype, or a wrong number of channels.
        """
        images = _images(x)
        batch, height, width, _ = images.shape
        size = (batch, -(-height // self._stride), -(-width // self._stride), self._channels)
        out = images.new_empty(size) if added is None else _images(added)
        torch.ops.stm_fast.convolution(out, images, self.weight, self.bias, 1, self._stride, added is not None, relu)
        return out.permute(0, 3, 1, 2)


class FusedBottleneckBlock(nn.Module):
    """Replaces ResNet's `Bottleneck` whose BatchNorm is folded. Overwrites its input if that is also the shortcut."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = PointwiseConv(block.conv1), block.conv2, PointwiseConv(block.conv3)
        self.downsample = None if block.downsample is None else PointwiseConv(_folded(block.downsample))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H / stride, W / stride]``, channels last."""
        h = _activated(self.conv2, self.conv1(x, relu=True))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.conv3(h, shortcut, relu=True)
        return out


class FusedBasicBlock(nn.Module):
    """Replaces ResNet's `BasicBlock` whose BatchNorm is folded."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.downsample = None if block.downsample is None else PointwiseConv(_folded(block.downsample))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H / stride, W / stride]``."""
        h = _activated(self.conv1, x)
        return _activated(self.conv2, h, x if self.downsample is None else self.downsample(x))


def replace_convolutions(module: nn.Module) -> None:
    """Replaces every 1x1 convolution and ResNet block in `module` that the operator supports."""
    for name, child in module.named_children():
        if isinstance(child, Bottleneck) and _fit(child.conv1, child.conv3, child.downsample):
            setattr(module, name, FusedBottleneckBlock(child))
        elif isinstance(child, BasicBlock) and _fit(child.downsample):
            setattr(module, name, FusedBasicBlock(child))
        elif isinstance(child, nn.Conv2d) and fits(child):
            setattr(module, name, PointwiseConv(child))
        else:
            replace_convolutions(child)


def fits(conv: nn.Conv2d) -> bool:
    """Whether the operator supports a convolution: 1x1, and bfloat16 only if the machine multiplies pairs of it."""
    one = (
        conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1 and conv.stride[0] == conv.stride[1]
    )
    pairs = conv.weight.dtype == torch.bfloat16 and conv.in_channels % 2 == 0 and cpp_ops.multiplies_bfloat16()
    return one and (pairs or conv.weight.dtype == torch.float32)


def _fit(*convs: nn.Module | None) -> bool:
    return all(conv is None or (isinstance(conv, nn.Conv2d) and fits(conv)) for conv in convs)


def _folded(shortcut: nn.Module) -> nn.Conv2d:
    assert isinstance(shortcut, nn.Conv2d)
    return shortcut


def _activated(conv: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor:
    """ReLU of a convolution, to whose result a tensor of the same shape may be added first."""
    if isinstance(conv, WinogradConv):
        return conv(x, residual=added, relu=True)
    h = conv(x)
    if added is not None:
        h += added
    return F.relu_(h)


def _images(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as contiguous ``[B, H, W, C]``, a view if `x` is channels last."""
    return x.detach().permute(0, 2, 3, 1).contiguous()
