"""The trunk of both encoders: a torchvision ResNet up to stride 16 whose BatchNorm never leaves eval mode."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock


class Layout(NamedTuple):
    """What the rest of the network, and a checkpoint reader, must know of a trunk."""

    stem: int  # channels of the first convolution (stride 2)
    channels: tuple[int, int, int]  # of r2 (stride 4), r3 (stride 8), r4 (stride 16)
    blocks: tuple[int, int, int]  # residual blocks of layer1, layer2, layer3


BACKBONES = {
    "resnet18_half": Layout(stem=32, channels=(32, 64, 128), blocks=(2, 2, 2)),
    "resnet18": Layout(stem=64, channels=(64, 128, 256), blocks=(2, 2, 2)),
    "resnet50": Layout(stem=64, channels=(256, 512, 1024), blocks=(3, 4, 6)),
}

# nothing normalises the activations of an untrained trunk, because the statistics are fixed at 0 and 1: full residual
# branches would triple the variance in every block and saturate the softmax of the memory read
RESIDUAL_GAIN = 0.25


class FixedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its stored statistics; scale and shift stay trainable (STM, "Two-stage Training").

    Attributes:
        fixed: False makes it a plain BatchNorm until it is True again, see `batch_norm_mode`.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.fixed = True
        self.train()

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        """Stays in eval mode where it is fixed, whatever `mode` says."""
        return super().train(mode and not self.fixed)


def resnet18_half(*, norm_layer: Callable[[int], nn.Module]) -> nn.Module:
    """The first three stages of a ResNet-18 with half its channels; torchvision's own have fixed widths."""
    layout = BACKBONES["resnet18_half"]
    trunk = nn.Module()
    trunk.conv1 = nn.Conv2d(3, layout.stem, kernel_size=7, stride=2, padding=3, bias=False)
    trunk.bn1 = norm_layer(layout.stem)
    widths = (layout.stem, *layout.channels)
    for index, stride in enumerate((1, 2, 2)):
        inward, outward = widths[index : index + 2]
        shortcut = None
        if stride > 1:
            shortcut = nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), norm_layer(outward))
        first = BasicBlock(inward, outward, stride, shortcut, norm_layer=norm_layer)
        rest = [BasicBlock(outward, outward, norm_layer=norm_layer) for _ in range(1, layout.blocks[index])]
        trunk.add_module(f"layer{index + 1}", nn.Sequential(first, *rest))
    return trunk


BUILDERS: dict[str, Callable[..., Any]] = {
    "resnet18_half": resnet18_half,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def batch_norm_mode(model: nn.Module, mode: str) -> None:
    """How the BatchNorms of a network normalise while it trains.

    Args:
        model: the network, or a part of it.
        mode: "fixed", by stored statistics, as STM is trained (section "Two-stage Training") from a trunk that is
            trained already; or "batch", by the batch's own, which a trunk that starts from nothing needs. Then the
            stored ones follow, and `eval()` uses them.

    Raises:
        ValueError: another mode.
    """
    if mode not in ("fixed", "batch"):
        raise ValueError(f"mode: found {mode!r}, expected 'fixed' or 'batch'")
    for module in model.modules():
        if isinstance(module, FixedBatchNorm2d):
            module.fixed = mode == "fixed"
            module.train(model.training)


class Backbone(nn.Module):
    """ResNet up to its third stage, for frames in [0, 1].

    The layers carry torchvision's names (`conv1`, `bn1`, `layer1` to `layer3`), so that its weights load as they are.
    Weights are drawn from PyTorch's global generator: seed it first.

    Raises:
        ValueError: `name` is not a key of `BACKBONES`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in BACKBONES:
            raise ValueError(f"backbone: found {name!r}, expected one of {', '.join(BACKBONES)}")
        # on the meta device, because the stages that STM does not have are most of a ResNet
        with torch.device("meta"):
            resnet = BUILDERS[name](norm_layer=FixedBatchNorm2d)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.layer1, self.layer2, self.layer3 = resnet.layer1, resnet.layer2, resnet.layer3
        self.to_empty(device=torch.get_default_device())
        self._initialise()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def normalise(self, frame: Tensor) -> Tensor:
        """Frames [B, 3, H, W] in [0, 1] to zero mean and unit variance over ImageNet."""
        return (frame - self.mean).div_(self.std)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output of the first convolution(s) [B, C1, H/2, W/2] to r4 [B, C4, H/16, W/16], r3 (H/8) and r2 (H/4)."""
        # under its own name, so that what was as large as r2 is gone before r2 is there
        x = F.max_pool2d(F.relu_(self.bn1(x)), kernel_size=3, stride=2, padding=1)  # [B, C1, H/4, W/4]
        return self.layers(x)

    def layers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What was pooled, [B, C1, H/4, W/4], to r4, r3 and r2."""
        r2: Tensor = self.layer1(x)  # [B, C2, H/4, W/4]
        r3: Tensor = self.layer2(r2)  # [B, C3, H/8, W/8]
        r4: Tensor = self.layer3(r3)  # [B, C4, H/16, W/16]
        return r4, r3, r2

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for block in (*self.layer1, *self.layer2, *self.layer3):
            last = block.bn3 if hasattr(block, "bn3") else block.bn2
            nn.init.constant_(last.weight, RESIDUAL_GAIN)
