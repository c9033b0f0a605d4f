"""Convolutions of 1x1, the blocks of ResNets around them, and narrow ones of 3x3, in float32 and bfloat16 on a CPU.

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
torch.library.define(
    "stm_fast::convolution_pool",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, Tensor? added, int kernel, int stride) -> ()",
)
torch.library.define(
    "stm_fast::narrow_convolution", "(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, bool relu) -> ()"
)
# all only write to `out`
for _name in ("convolution", "convolution_pool", "narrow_convolution"):
    torch.library.register_fake(f"stm_fast::{_name}", lambda *_: None)


MOST_NARROW = 4  # output channels of a narrow convolution


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
            expected = "1x1 without padding, in float32, or in bfloat16 with AVX512_BF16 and an even number of channels"
            raise InputError(f"conv: found {conv}, expected {expected}")
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
        images = panels.images(x)
        batch, height, width, _ = images.shape
        size = (batch, -(-height // self._stride), -(-width // self._stride), self._channels)
        out = images.new_empty(size) if added is None else panels.images(added)
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


class NarrowConv(nn.Module):
    """Replaces a 3x3 convolution with few output channels, such as that of the logits; without gradients.

    PyTorch computes a few output channels hardly faster than sixteen. Here, the nine taps of all outputs are columns of
    one product, which a second step adds up.

    Args:
        conv: see `is_narrow`.
        relu: whether negative inputs count as 0.

    Raises:
        InputError: the operator does not support the convolution.
    """

    weight: Tensor  # [ceil(9 K / 16), C, 16], or in pairs of bfloat16 [ceil(9 K / 16), C / 2, 16, 2]
    bias: Tensor  # [K rounded up to a multiple of 16], float32

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        if not is_narrow(conv):
            raise InputError(f"conv: found {conv}, expected 3x3 with stride 1 and up to {MOST_NARROW} output channels")
        taps = conv.weight.permute(2, 3, 0, 1).flatten(0, 2)  # [9 K, C]
        self.register_buffer("weight", panels.packed(taps))
        self.register_buffer("bias", panels.bias(conv))
        self._channels, self._relu = conv.out_channels, relu

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, preferably channels last, to ``[B, K, H, W]``, channels last.

        Raises:
            RuntimeError: another dtype than that of the convolution, or a wrong number of channels.
        """
        images = panels.images(x)
        out = images.new_empty(*images.shape[:3], self._channels)
        torch.ops.stm_fast.narrow_convolution(out, images, self.weight, self.bias, self._relu)
        return out.permute(0, 3, 1, 2)


def replace_convolutions(module: nn.Module) -> None:
    """Replaces every convolution and ResNet block in `module` that the operators support."""
    for name, child in module.named_children():
        if isinstance(child, Bottleneck) and _all_fit(child.conv1, child.conv3, child.downsample):
            setattr(module, name, FusedBottleneckBlock(child))
        elif (
            isinstance(child, BasicBlock) and _all_fit(child.downsample) and cpp_ops.convolves(child.conv1.weight.dtype)
        ):
            setattr(module, name, FusedBasicBlock(child))
        elif (conv := _narrow_after_relu(child)) is not None:
            setattr(module, name, NarrowConv(conv, relu=True))
        elif isinstance(child, nn.Conv2d) and is_narrow(child):
            setattr(module, name, NarrowConv(child, relu=False))
        elif isinstance(child, nn.Conv2d) and fits(child):
            setattr(module, name, PointwiseConv(child))
        else:
            replace_convolutions(child)


def fits(conv: nn.Conv2d) -> bool:
    """Whether the operator supports a convolution of 1x1."""
    one = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.stride[0] == conv.stride[1]
    return one and conv.groups == 1 and _is_read_in_place(conv)


def is_narrow(conv: nn.Conv2d) -> bool:
    """Whether the operator supports a convolution of 3x3 with few output channels."""
    three = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    plain = conv.groups == 1 and conv.dilation == (1, 1)
    return three and plain and conv.out_channels <= MOST_NARROW and _is_read_in_place(conv)


def _is_read_in_place(conv: nn.Conv2d) -> bool:
    """Whether the inputs of a convolution can be multiplied where they are: bfloat16 in pairs of channels."""
    pairs = conv.weight.dtype == torch.float32 or conv.in_channels % 2 == 0
    return pairs and cpp_ops.convolves(conv.weight.dtype)


def _narrow_after_relu(module: nn.Module) -> nn.Conv2d | None:
    """The narrow convolution of a sequence of ReLU and convolution."""
    if not isinstance(module, nn.Sequential) or len(module) != 2 or not isinstance(module[0], nn.ReLU):
        return None
    conv = module[1]
    return conv if isinstance(conv, nn.Conv2d) and is_narrow(conv) else None


def _all_fit(*convs: nn.Module | None) -> bool:
    return all(conv is None or (isinstance(conv, nn.Conv2d) and fits(conv)) for conv in convs)


def _fits_basic(block: BasicBlock) -> bool:
    return cpp_ops.convolves(block.conv1.weight.dtype) and _all_fit(block.downsample)


def _folded(shortcut: nn.Module) -> nn.Conv2d:
    assert isinstance(shortcut, nn.Conv2d)
    return shortcut


def _activated(conv: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor:
    """ReLU of a convolution, to whose result a tensor of the same shape may be added first."""
    h: Tensor
    if isinstance(conv, WinogradConv):
        h = conv(x, residual=added, relu=True)
        return h
    h = conv(x)
    if added is not None:
        h += added
    return F.relu_(h)
