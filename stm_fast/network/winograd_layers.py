"""The network's convolutions of 3 x 3 with a quarter of the products, in float32 on a CPU."""

from torch import Tensor, nn

from stm_fast.network.backbone import BasicBlock, Bottleneck
from stm_fast.network.decoder import ResidualBlock
from stm_fast.network.in_place_layers import InPlaceBlock, PointwiseConv
from stm_fast.ops import winograd


class WinogradConv(nn.Module):
    """A convolution of 3 x 3, with the weights of another one."""

    points: Tensor  # [36, C, K]
    bias: Tensor  # [K]

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("points", winograd.transform_weight(conv.weight.detach()))
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H, W]``."""
        return winograd.conv3x3(x, self.points, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to ``[B, K, H, W]``, which is overwritten where it is channels last."""
        return winograd.conv3x3(x, self.points, self.bias, residual=residual, overwrite=True)


class WinogradResidualBlock(nn.Module):
    """A `ResidualBlock` whose activations and sum are part of its convolutions. It overwrites its input."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = (WinogradConv(conv) for conv in (block.conv1, block.conv2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        first, second = (winograd.Convolution(conv.points, conv.bias) for conv in (self.conv1, self.conv2))
        return winograd.residual_block(x, first, second)


def replace_convolutions(module: nn.Module) -> None:
    """Replaces every convolution inside `module` that can be."""
    for name, child in module.named_children():
        if isinstance(child, ResidualBlock) and _fits(child.conv1):
            setattr(module, name, WinogradResidualBlock(child))
        elif isinstance(child, nn.Conv2d) and _fits(child):
            setattr(module, name, WinogradConv(child))
        elif isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and child.groups == 1:
            setattr(module, name, PointwiseConv(child))
        else:
            replace_convolutions(child)
            if isinstance(child, (BasicBlock, Bottleneck)):
                setattr(module, name, InPlaceBlock(child))


def _fits(conv: nn.Conv2d) -> bool:
    three = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    plain = conv.groups == 1 and conv.dilation == (1, 1)
    return three and plain and conv.in_channels % winograd.LANES == 0 and conv.out_channels % winograd.LANES == 0
