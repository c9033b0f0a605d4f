"""A network made ready for inference: the same function with less to compute."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from stm_fast.network.backbone import Backbone
from stm_fast.network.encoders import MemoryEncoder
from stm_fast.network.stm import STM


def for_inference(model: STM) -> STM:
    """A copy that only infers: BatchNorm folded into the convolutions before it, weights laid out channels last.

    BatchNorm with fixed statistics is a scale and a shift, which the convolution's weight and bias take over, so
    results differ by rounding alone. The copy has no gradients and other entries in its state dict: keep the original
    to train, load or save.
    """
    copy = deepcopy(model).eval().requires_grad_(False)
    for encoder in (copy.memory_encoder, copy.query_encoder):
        _fold_stem(encoder)
        _fold_blocks(encoder)
    return copy.to(memory_format=torch.channels_last)


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
