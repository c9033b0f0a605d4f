"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd filtering F(4x4, 3x3).

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. 6x6 tiles of the input are
transformed, multiplied by transformed weights in 36 matrix products over the channels, and transformed back. The loops
are in the C++ extension; csrc/include/stm_fast/winograd.h explains them.
"""

import torch
from torch import Tensor, nn

from stm_fast.network.decoder import ResidualBlock
from stm_fast.network.deploy import panels
from stm_fast.ops import cpp_ops

DTYPES = (torch.float32, torch.bfloat16)
POINTS = 36
# the polynomials' points are 0, this, its reciprocal, their negatives, and infinity, as in winograd.h
_POINT = 5 / 8

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


def transform_weight(weight: Tensor) -> Tensor:
    """Transforms the weight ``[K, C, 3, 3]`` of a convolution, in float64, and packs it for `conv3x3`.

    Returns:
        ``[36, ceil(K / 16), C, 16]``, or in pairs of bfloat16 ``[36, ceil(K / 16), ceil(C / 2), 16, 2]``.
    """
    transform = _weight_transform()
    taps = panels.padded(weight.double().permute(2, 3, 1, 0)).flatten(0, 1)  # [9, C, K'], which is smaller than points
    points = torch.kron(transform, transform) @ taps.flatten(1)
    return panels.pack_columns(points.to(weight.dtype).reshape(POINTS, *taps.shape[1:]))


def _weight_transform() -> Tensor:
    """G ``[6, 3]`` of the paper's section 4.3 for other points, in float64."""
    rows = [[1.0, 0.0, 0.0]]
    for point in (_POINT, 1 / _POINT):
        scale = 1 / (2 * point**2 * (point**2 - point**-2))
        rows += [[scale, sign * scale * point, scale * point**2] for sign in (1, -1)]
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

    Its root mean square error is two to eight times that of the direct convolution in float32, four to ten times in
    bfloat16 (normally distributed numbers, 9 to 256 channels).

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
