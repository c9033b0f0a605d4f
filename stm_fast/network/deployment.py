"""A network made ready for inference: the same function with less to compute."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from stm_fast.network.backbone import Backbone
from stm_fast.network.decoder import ResidualBlock
from stm_fast.network.encoders import MemoryEncoder
from stm_fast.network.stm import STM
from stm_fast.ops import winograd


def for_inference(model: STM) -> STM:
    """A copy that only infers; results differ by rounding alone.

    BatchNorm with fixed statistics is a scale and a shift: the convolution before it takes them over. In float32 on a
    CPU, where the extension is there, convolutions of 3 x 3 take a quarter of the products
    (:mod:`stm_fast.ops.winograd`), with their activations and sums built in.

    The copy has no gradients, stays on its device and in its dtype, and has other entries in its state dict: keep the
    original to train, load, save or move.
    """
    copy = deepcopy(model).eval().requires_grad_(False)
    for encoder in (copy.memory_encoder, copy.query_encoder):
        _fold_stem(encoder)
        _fold_blocks(encoder)
    weight = copy.decoder.compress.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and not winograd.absent_reasons():
        copy.to(memory_format=torch.channels_last)
        _replace_convolutions(copy)
    return copy


class WinogradConv(nn.Module):
    """A convolution of 3 x 3, with the weights of another one."""

    points: Tensor  # [36, C, K]
    bias: Tensor  # [K]

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.register_buffer("points", winograd.transform_weight(conv.weight.detach()))
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[B, C, H, W]``, and ``[B, K, H, W]`` to add, to ``[B, K, H, W]``."""
        return winograd.conv3x3(x, self.points, self.bias, relu=self.relu, residual=residual)


class WinogradResidualBlock(nn.Module):
    """A `ResidualBlock` whose activations and sum are part of its convolutions."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = (WinogradConv(conv, relu=True) for conv in (block.conv1, block.conv2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        joined: Tensor = self.conv2(self.conv1(x), residual=x)
        return joined


def _replace_convolutions(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ResidualBlock) and _fits(child.conv1):
            setattr(module, name, WinogradResidualBlock(child))
        elif isinstance(child, nn.Conv2d) and _fits(child):
            setattr(module, name, WinogradConv(child))
        else:
            _replace_convolutions(child)


def _fits(conv: nn.Conv2d) -> bool:
    three = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    plain = conv.groups == 1 and conv.dilation == (1, 1)
    return three and plain and conv.in_channels % winograd.LANES == 0 and conv.out_channels % winograd.LANES == 0


def _fold_stem(encoder: Backbone) -> None:
    """The stem's convolutions are added up before their BatchNorm: each is scaled, one takes the shift."""
    norm = encoder.bn1
    if isinstance(encoder, MemoryEncoder):
        scale = _scale(norm)
        encoder.conv1_mask.weight.mul_(scale)
        encoder.conv1_others.weight.mul_(scale)
    encoder.conv1 = fuse_conv_bn_eval(encoder.conv1, norm)
    encoder.bn1 = nn.Identity()


def _fold_blocks(encoder: Backbone) -> None:
    for block in (*encoder.layer1, *encoder.layer2, *encoder.layer3):
        for index in (1, 2, 3):
            norm = getattr(block, f"bn{index}", None)
            if norm is not None:
                setattr(block, f"conv{index}", fuse_conv_bn_eval(getattr(block, f"conv{index}"), norm))
                setattr(block, f"bn{index}", nn.Identity())
        if block.downsample is not None:
            block.downsample = fuse_conv_bn_eval(block.downsample[0], block.downsample[1])


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    """What BatchNorm multiplies with, for a weight ``[C, 1, k, k]``."""
    assert norm.running_var is not None
    return (norm.weight / torch.sqrt(norm.running_var + norm.eps)).view(-1, 1, 1, 1)
