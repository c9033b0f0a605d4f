"""Inverted bottlenecks of MobileNet and EfficientNet-Lite on a CPU, without the widened map between their convolutions.

    y = project(relu6(depthwise(relu6(expand(x))))) [+ x]

A few rows of some channels of the widened map are there at a time, in a core's own cache, where PyTorch writes and
reads the whole of it four times. The loops are those of the C++ engine; csrc/include/stm_fast/inverted_bottleneck.h
says more. The first convolution of such a network, which has few channels and an activation, is here too.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stm_fast.errors import InputError
from stm_fast.ops import cpp_ops
from stm_fast.ops.room import ROOM

DTYPES = (torch.float32, torch.bfloat16)
KERNELS = (3, 5)
STRIDES = (1, 2)
_PANEL = 16  # columns of a weight that lie side by side

torch.library.define(
    "stm_fast::inverted_bottleneck",
    "(Tensor(a!) out, Tensor x, Tensor? expand, Tensor? expand_bias, Tensor depthwise, Tensor depthwise_bias, "
    "Tensor project, Tensor project_bias, int expanded, int kernel, int stride, bool residual) -> ()",
)
torch.library.define(
    "stm_fast::convolution_relu6",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, int kernel, int stride) -> ()",
)


def _fake(
    out: Tensor,
    x: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    expanded: int,
    kernel: int,
    stride: int,
    residual: bool,
) -> None:
    return None


def _fake_convolution(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int) -> None:
    return None


torch.library.register_fake("stm_fast::inverted_bottleneck", _fake)
torch.library.register_fake("stm_fast::convolution_relu6", _fake_convolution)


class Weights(NamedTuple):
    """Of a bottleneck, as a network has them: Cin channels, widened to M, then Cout."""

    expand: Tensor | None  # [M, Cin, 1, 1], or None: M = Cin
    expand_bias: Tensor | None  # [M]
    depthwise: Tensor  # [M, 1, k, k]
    depthwise_bias: Tensor  # [M]
    project: Tensor  # [Cout, M, 1, 1]
    project_bias: Tensor  # [Cout]


class Packed(NamedTuple):
    """The same as `inverted_bottleneck` takes them."""

    expand: Tensor | None  # [ceil(M / 16), Cin, 16], or in pairs of bfloat16 [ceil(M / 16), ceil(Cin / 2), 16, 2]
    expand_bias: Tensor | None  # [M up to 16], float32, as the next two
    depthwise: Tensor  # [k * k, M up to 16]
    depthwise_bias: Tensor  # [M up to 16]
    project: Tensor  # as expand, [ceil(Cout / 16), M, 16]
    project_bias: Tensor  # [Cout up to 16], float32
    expanded: int  # M
    channels: int  # Cout


class PackedConvolution(NamedTuple):
    """What `convolution_relu6` takes, in float32."""

    weight: Tensor  # [ceil(K / 16), k * k * C, 16]
    bias: Tensor  # [K up to 16]
    channels: int  # K


def absent_reasons() -> list[str]:
    """Why there are no such operators here; nothing where there are."""
    return cpp_ops.operator_absent_reasons("stm_fast::inverted_bottleneck")


def pack(weights: Weights) -> Packed:
    """Weights of float32 or bfloat16, packed once; those of the depthwise convolution and all biases in float32.

    Raises:
        InputError: another dtype, or a depthwise convolution of another size than 3 x 3 or 5 x 5.
    """
    _check_dtype("weight", weights.project)
    kernel = weights.depthwise.shape[-1]
    if kernel not in KERNELS or weights.depthwise.shape[-2] != kernel:
        raise InputError(f"depthwise: found {tuple(weights.depthwise.shape[-2:])}, expected (3, 3) or (5, 5)")
    return Packed(
        None if weights.expand is None else _panels(weights.expand.flatten(1)),
        None if weights.expand_bias is None else _padded(weights.expand_bias.float()),
        _padded(weights.depthwise.float().flatten(1).T),
        _padded(weights.depthwise_bias.float()),
        _panels(weights.project.flatten(1)),
        _padded(weights.project_bias.float()),
        weights.depthwise.shape[0],
        weights.project.shape[0],
    )


def pack_convolution(weight: Tensor, bias: Tensor) -> PackedConvolution:
    """The weight ``[K, C, k, k]`` and bias ``[K]`` of a convolution as `convolution_relu6` takes them.

    Raises:
        InputError: another dtype than float32 or bfloat16, or another size than 3 x 3 or 5 x 5.
    """
    _check_dtype("weight", weight)
    if weight.shape[-1] not in KERNELS or weight.shape[-2] != weight.shape[-1]:
        raise InputError(f"weight: found {tuple(weight.shape[-2:])}, expected (3, 3) or (5, 5)")
    rows = weight.float().permute(0, 2, 3, 1).flatten(1)  # [K, k * k * C]
    return PackedConvolution(_panels(rows), _padded(bias.float()), weight.shape[0])


def inverted_bottleneck(x: Tensor, packed: Packed, *, stride: int, residual: bool = False) -> Tensor:
    """``project(relu6(depthwise(relu6(expand(x)))))``, plus `x` where `residual`; on a CPU, without gradients.

    The depthwise convolution has the border of zeros that TensorFlow's "SAME" gives it. Everything between `x` and the
    result is float32; where a CPU multiplies bfloat16 numbers, what its last product takes is rounded to them.

    Args:
        x: ``[B, Cin, H, W]`` of float32 or bfloat16, best laid out channels last.
        packed: of weights of the same dtype.
        stride: of the depthwise convolution, 1 or 2.
        residual: wants stride 1 and Cout = Cin.

    Returns:
        ``[B, Cout, ceil(H / stride), ceil(W / stride)]``, channels last.

    Raises:
        InputError: another dtype, one that is not the weights', or another stride.
        RuntimeError: tensors that do not fit each other.
    """
    if x.dtype != packed.project.dtype:
        raise InputError(f"x: found {x.dtype}, expected that of the weights, {packed.project.dtype}")
    *tensors, expanded, channels = packed
    pictures, out = _pictures(x, stride, channels)
    kernel = _kernel(packed.depthwise.shape[0])
    torch.ops.stm_fast.inverted_bottleneck(out, pictures, *tensors, expanded, kernel, stride, residual)
    return out.permute(0, 3, 1, 2)


def reference(x: Tensor, weights: Weights, *, stride: int, residual: bool = False) -> Tensor:
    """What `inverted_bottleneck` computes, in plain PyTorch and any dtype."""
    h = x if weights.expand is None else F.relu6(F.conv2d(x, weights.expand, weights.expand_bias))
    h = _same_convolution(h, weights.depthwise, weights.depthwise_bias, stride, groups=h.shape[1])
    projected = F.conv2d(F.relu6(h), weights.project, weights.project_bias)
    return x + projected if residual else projected


def convolution_relu6(x: Tensor, packed: PackedConvolution, *, stride: int) -> Tensor:
    """``relu6(conv(x))`` with the border of zeros that TensorFlow's "SAME" has; on a CPU, without gradients.

    For few channels: all products are of float32 numbers, and a window is a few long rows of a matrix.

    Args:
        x: ``[B, C, H, W]`` of float32 or bfloat16, best laid out channels last.
        packed: of `pack_convolution`.
        stride: 1 or 2.

    Returns:
        ``[B, K, ceil(H / stride), ceil(W / stride)]``, channels last.

    Raises:
        InputError: another dtype or stride.
        RuntimeError: tensors that do not fit each other.
    """
    pictures, out = _pictures(x, stride, packed.channels)
    kernel = _kernel(packed.weight.shape[1] // max(x.shape[1], 1))
    torch.ops.stm_fast.convolution_relu6(out, pictures, packed.weight, packed.bias, kernel, stride)
    return out.permute(0, 3, 1, 2)


def reference_convolution(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int) -> Tensor:
    """What `convolution_relu6` computes, in plain PyTorch and any dtype."""
    return F.relu6(_same_convolution(x, weight, bias, stride, groups=1))


def _same_convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
    kernel = weight.shape[-1]
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
    padded = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return F.conv2d(padded, weight, bias, stride, groups=groups)


def _pictures(x: Tensor, stride: int, channels: int) -> tuple[Tensor, Tensor]:
    """The inputs ``[B, H, W, C]`` and room for outputs of so many channels."""
    _check_dtype("x", x)
    if stride not in STRIDES:
        raise InputError(f"stride: found {stride}, expected 1 or 2")
    pictures = x.detach().permute(0, 2, 3, 1).contiguous()
    batch, height, width, _ = pictures.shape
    return pictures, ROOM.empty(pictures, batch, -(-height // stride), -(-width // stride), channels)


def _kernel(taps: int) -> int:
    return next((side for side in KERNELS if side * side == taps), 0)


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise InputError(f"{name}: found {tensor.dtype}, expected torch.float32 or torch.bfloat16")


def _padded(rows: Tensor) -> Tensor:
    """Zeros behind the last dimension, up to a whole panel."""
    return F.pad(rows.detach(), (0, -rows.shape[-1] % _PANEL)).contiguous()


def _panels(weight: Tensor) -> Tensor:
    """A weight ``[K, depth]`` as ``[ceil(K / 16), depth, 16]``; of bfloat16, numbers of the depth lie in pairs."""
    columns = _padded(weight.T)  # [depth, K up to 16]
    panels = columns.shape[1] // _PANEL
    if weight.dtype == torch.bfloat16:
        pairs = F.pad(columns, (0, 0, 0, columns.shape[0] % 2)).view(-1, 2, panels, _PANEL)
        return pairs.permute(2, 0, 3, 1).contiguous()
    return columns.view(-1, panels, _PANEL).transpose(0, 1).contiguous()
