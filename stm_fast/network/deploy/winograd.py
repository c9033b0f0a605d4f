"""3x3 convolutions on a CPU with fewer multiplications: Winograd filtering F(6x6, 3x3) and F(4x4, 3x3).

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. 8x8 or 6x6 tiles of the input are
transformed, multiplied by transformed weights in 64 or 36 matrix products over the channels, and transformed back, with
a fifth or a quarter of the multiplications. The loops are in the C++ extension; csrc/include/stm_fast/winograd.h
explains them.
"""

import math

import torch
from torch import Tensor, nn

from stm_fast.network.decoder import ResidualBlock
from stm_fast.network.deploy import panels
from stm_fast.ops import cpp_ops

DTYPES = (torch.float32, torch.bfloat16)
# the polynomials' points are 0, these, their negatives, and infinity, as in winograd.h, by the outputs of a tile
_PAIRS = {4: (0.625, 1.6), 6: (1.0, 2.0, 0.5)}
# C K of a convolution; 64 points of more weights take too much memory
_MOST_OF_LARGE_TILES = 2**17

torch.library.define(
    "stm_fast::winograd_convolution",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, Tensor? residual, bool relu_input, bool relu_output) -> ()",
)
torch.library.define(
    "stm_fast::winograd_residual_block",
    "(Tensor(a!) x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2) -> ()",
)
# both only write to their first argument
torch.library.register_fake("stm_fast::winograd_convolution", lambda *_: None)
torch.library.register_fake("stm_fast::winograd_residual_block", lambda *_: None)


def absent_reasons() -> list[str]:
    """Why the extension's convolutions are not available; empty if they are."""
    return cpp_ops.operator_absent_reasons("stm_fast::winograd_convolution")


def tile_of(weight: Tensor) -> int:
    """The outputs of a tile, in each direction, for the weight ``[K, C, 3, 3]``; 6 multiplies less, 4 is more exact."""
    return 6 if weight.dtype == torch.float32 and weight[..., 0, 0].numel() <= _MOST_OF_LARGE_TILES else 4


def transform_weight(weight: Tensor) -> Tensor:
    """Transforms the weight ``[K, C, 3, 3]`` of a convolution, in float64, and packs it for `conv3x3`.

    Returns:
        ``[P, ceil(K / 16), C, 16]``, or in pairs of bfloat16 ``[P, ceil(K / 16), ceil(C / 2), 16, 2]``; P is 36 or 64.
    """
    transform = _weight_transform(tile_of(weight))
    taps = panels.padded(weight.double().permute(2, 3, 1, 0)).flatten(0, 1)  # [9, C, K'], which is smaller than points
    points = torch.kron(transform, transform) @ taps.flatten(1)
    return panels.pack_columns(points.to(weight.dtype).reshape(len(points), *taps.shape[1:]))


def _weight_transform(tile: int) -> Tensor:
    """G ``[tile + 2, 3]`` of the paper's section 4.3 for other points, in float64."""
    squares = [pair**2 for pair in _PAIRS[tile]]
    at_zero = math.prod(-square for square in squares)
    rows = [[1 / at_zero, 0.0, 0.0]]
    for pair in _PAIRS[tile]:
        scale = 1 / (2 * pair**2 * math.prod(pair**2 - square for square in squares if square != pair**2))
        rows += [[scale, sign * scale * pair, scale * pair**2] for sign in (1, -1)]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channels: int,
    *,
    residual: Tensor | None = None,
    relu_input: bool = False,
    relu_output: bool = False,
) -> Tensor:
    """A 3x3 convolution with stride 1 and zero padding, in float32 or bfloat16 on a CPU; without gradients.

    Root mean square errors relative to that of the result, for normally distributed numbers and 16 to 1024 channels:
    2e-6 to 5e-6 in float32 with tiles of 6x6 outputs, 1.1e-6 with 4x4, 1.1e-2 in bfloat16. Those of PyTorch's direct
    convolution: 2e-7 to 1.1e-6, and 1.7e-3 in bfloat16.

    Args:
        x: ``[B, C, H, W]``, preferably channels last.
        weight: from `transform_weight`, in the dtype of `x`.
        bias: ``[K rounded up to a multiple of 16]``, float32.
        channels: K.
        residual: ``[B, K, H, W]``, added to the result.
        relu_input: whether negative inputs count as 0.
        relu_output: whether negative results become 0.

    Returns:
        ``[B, K, H, W]``, channels last.

    Raises:
        RuntimeError: another dtype, or weights that do not fit.
    """
    images = panels.images(x)
    out = images.new_empty(*images.shape[:3], channels)
    added = None if residual is None else panels.images(residual)
    torch.ops.stm_fast.winograd_convolution(out, images, weight, bias, added, relu_input, relu_output)
    return out.permute(0, 3, 1, 2)


class WinogradConv(nn.Module):
    """Replaces a 3x3 convolution."""

    weight: Tensor  # from `transform_weight`
    bias: Tensor  # [K rounded up to a multiple of 16], float32

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", transform_weight(conv.weight.detach()))
        self.register_buffer("bias", panels.bias(conv))
        self._channels = conv.out_channels

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H, W]``, channels last; residual and ReLU of the result as in `conv3x3`."""
        return conv3x3(x, self.weight, self.bias, self._channels, residual=residual, relu_output=relu)


class WinogradResidualBlock(nn.Module):
    """Replaces a `ResidualBlock`. Overwrites its input if that is channels last.

    Activations and the sum are fused into the convolutions. The two convolutions alternate strip by strip, so that at
    most three strips of the intermediate map exist. A strip of the result overwrites the same strip of the input, which
    is then only needed as the residual.
    """

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = WinogradConv(block.conv1), WinogradConv(block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape, channels last."""
        images, first, second = panels.images(x), self.conv1, self.conv2
        torch.ops.stm_fast.winograd_residual_block(images, first.weight, first.bias, second.weight, second.bias)
        return images.permute(0, 3, 1, 2)


def replace_convolutions(module: nn.Module) -> None:
    """Replaces every 3x3 convolution in `module` that has stride 1."""
    for name, child in module.named_children():
        if isinstance(child, ResidualBlock) and _fits(child.conv1):
            setattr(module, name, WinogradResidualBlock(child))
        elif isinstance(child, nn.Conv2d) and _fits(child):
            setattr(module, name, WinogradConv(child))
        else:
            replace_convolutions(child)


def _fits(conv: nn.Conv2d) -> bool:
    three = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    return three and conv.groups == 1 and conv.dilation == (1, 1) and conv.weight.dtype in DTYPES
