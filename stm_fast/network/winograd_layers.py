"""The network's convolutions of 3 x 3 with a quarter of the products, in float32 on a CPU."""

from torch import Tensor, nn

from stm_fast.network.decoder import ResidualBlock
from stm_fast.ops import winograd


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

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H, W]``."""
        return winograd.conv3x3(x, self.points, self.bias, relu=self.relu)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to ``[B, K, H, W]``, which is overwritten where it is channels last."""
        return winograd.conv3x3(x, self.points, self.bias, relu=self.relu, residual=residual, overwrite=True)


class WinogradResidualBlock(nn.Module):
    """A `ResidualBlock` whose activations and sum are part of its convolutions. It overwrites its input."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = (WinogradConv(conv, relu=True) for conv in (block.conv1, block.conv2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        return self.conv2.add_to(x, self.conv1(x))


def replace_convolutions(module: nn.Module) -> None:
    """Replaces every convolution inside `module` that can be."""
    for name, child in module.named_children():
        if isinstance(child, ResidualBlock) and _fits(child.conv1):
            setattr(module, name, WinogradResidualBlock(child))
        elif isinstance(child, nn.Conv2d) and _fits(child):
            setattr(module, name, WinogradConv(child))
        else:
            replace_convolutions(child)


def _fits(conv: nn.Conv2d) -> bool:
    three = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    plain = conv.groups == 1 and conv.dilation == (1, 1)
    return three and plain and conv.in_channels % winograd.LANES == 0 and conv.out_channels % winograd.LANES == 0
