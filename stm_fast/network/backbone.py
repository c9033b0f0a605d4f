"""The trunk of both encoders: a ResNet up to stride 16 whose BatchNorm always uses stored statistics.

The blocks are those of torchvision; importing `torchvision.models` would take as long as importing torch.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# gain of the residual branches of an untrained trunk. Its BatchNorm, with statistics 0 and 1, does not normalize: a
# gain of 1 would triple the variance in every block and saturate the softmax of the memory read
RESIDUAL_GAIN = 0.25


class FixedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its stored statistics; scale and shift are trainable (STM, "Two-stage Training").

    Attributes:
        fixed: if False, this is a plain BatchNorm, see `batch_norm_mode`.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.fixed = True
        self.train()

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        """Sets the mode; a fixed BatchNorm stays in eval mode."""
        return super().train(mode and not self.fixed)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection, as in ResNet-18."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = FixedBatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = FixedBatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H / stride, W / stride]``."""
        h = F.relu_(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        h += x if self.downsample is None else self.downsample(x)
        return F.relu_(h)


class Bottleneck(nn.Module):
    """A 3x3 convolution, a quarter as wide, between two 1x1, as in ResNet-50 v1.5: the 3x3 one has the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = FixedBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = FixedBatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = FixedBatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H / stride, W / stride]``."""
        h = F.relu_(self.bn1(self.conv1(x)))
        h = F.relu_(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        h += x if self.downsample is None else self.downsample(x)
        return F.relu_(h)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Projects a block's input to the shape of its output; None if they are the same."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), FixedBatchNorm2d(out_channels))


class ResNetLayout(NamedTuple):
    """The properties of a trunk that the other parts of the network and the checkpoint reader need."""

    stem: int  # channels of the first convolution (stride 2)
    channels: tuple[int, int, int]  # of r2 (stride 4), r3 (stride 8), r4 (stride 16)
    blocks: tuple[int, int, int]  # residual blocks of layer1, layer2, layer3
    block: type[BasicBlock | Bottleneck]
    imagenet: str | None = None  # torchvision's weights

    @property
    def maps(self) -> tuple[int, ...]:
        """Channels of each feature map at stride 16, the input of the key and value heads."""
        return self.channels[-1:]

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict of an STM contains this trunk, by numbers of blocks and channels."""
        blocks = {f"query_encoder.layer{index}.": count for index, count in enumerate(self.blocks, 1)}
        return contains_trunk(state, blocks, self.maps)

    def layers(self) -> list[nn.Sequential]:
        """layer1, layer2 and layer3."""
        widths = pairwise((self.stem, *self.channels))
        return [
            nn.Sequential(self.block(before, after, stride), *(self.block(after, after, 1) for _ in range(1, blocks)))
            for (before, after), blocks, stride in zip(widths, self.blocks, (1, 2, 2), strict=True)
        ]


RESNETS = {
    "resnet18_half": ResNetLayout(32, (32, 64, 128), (2, 2, 2), BasicBlock),
    "resnet18": ResNetLayout(64, (64, 128, 256), (2, 2, 2), BasicBlock, "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet50": ResNetLayout(64, (256, 512, 1024), (3, 4, 6), Bottleneck, "ResNet50_Weights.IMAGENET1K_V1"),
}


def contains_trunk(state: Mapping[str, Tensor], blocks: Mapping[str, int], maps: tuple[int, ...]) -> bool:
    """Whether a state dict of an STM has these numbers of blocks, by prefix, and keys from maps of these channels."""
    for prefix, count in blocks.items():
        if len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}) != count:
            return False
    return state["query_key_value.key.weight"].shape[1] == sum(maps)


def batch_norm_mode(model: nn.Module, mode: str) -> None:
    """Sets which statistics BatchNorm uses in training.

    Args:
        model: the network, or a part of it.
        mode: "fixed", the stored statistics, as in STM (section "Two-stage Training"), for a pretrained trunk; or
            "batch", those of the batch, which an untrained trunk needs. Then running averages are stored, for `eval()`.

    Raises:
        ValueError: another mode.
    """
    if mode not in ("fixed", "batch"):
        raise ValueError(f"mode: found {mode!r}, expected 'fixed' or 'batch'")
    for module in model.modules():
        if isinstance(module, FixedBatchNorm2d):
            module.fixed = mode == "fixed"
            module.train(model.training)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network has BatchNorm, so that `batch_norm_mode` has an effect."""
    return any(isinstance(module, FixedBatchNorm2d) for module in model.modules())


class Backbone(nn.Module):
    """ResNet up to its third stage, for frames in [0, 1].

    Layers have torchvision's names (`conv1`, `bn1`, `layer1` to `layer3`), so that its weights can be loaded.
    Weights are initialized from PyTorch's global generator.

    Args:
        name: a key of `RESNETS`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        layout = RESNETS[name]
        # on the meta device, because `_initialize` sets every weight
        with torch.device("meta"):
            self.conv1 = nn.Conv2d(3, layout.stem, 7, stride=2, padding=3, bias=False)
            self.bn1 = FixedBatchNorm2d(layout.stem)
            self.layer1, self.layer2, self.layer3 = layout.layers()
        self.to_empty(device=torch.get_default_device())
        self._initialize()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def normalize(self, frame: Tensor) -> Tensor:
        """Normalizes frames [B, 3, H, W] in [0, 1] by mean and standard deviation of ImageNet."""
        return (frame - self.mean).div_(self.std)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output of the first convolution(s) [B, C1, H/2, W/2] to r4 [B, C4, H/16, W/16], r3 (H/8) and r2 (H/4)."""
        # reassigning x frees the larger map before r2 is allocated
        x = F.max_pool2d(F.relu_(self.bn1(x)), kernel_size=3, stride=2, padding=1)  # [B, C1, H/4, W/4]
        return self.residual_stages(x)

    def residual_stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The stem's output [B, C1, H/4, W/4] to the maps of `stages`."""
        r2: Tensor = self.layer1(x)  # [B, C2, H/4, W/4]
        r3: Tensor = self.layer2(r2)  # [B, C3, H/8, W/8]
        r4: Tensor = self.layer3(r3)  # [B, C4, H/16, W/16]
        return r4, r3, r2

    def parts(self) -> list[nn.Module]:
        """The stem and the stages, from input to output."""
        return [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3]

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for block in (*self.layer1, *self.layer2, *self.layer3):
            last = block.bn3 if hasattr(block, "bn3") else block.bn2
            nn.init.constant_(last.weight, RESIDUAL_GAIN)
