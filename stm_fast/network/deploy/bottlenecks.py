"""EfficientNet-Lite's inverted bottlenecks and stem as one operator each, in float32 and bfloat16 on a CPU.

    y = project(relu6(depthwise(relu6(expand(x))))) [+ x]

PyTorch writes and reads the whole expanded map four times. Here, only a few rows of some channels exist at a time, in a
core's private cache. The loops are in the C++ extension; csrc/include/stm_fast/inverted_bottleneck.h explains them.
"""

import torch
from torch import Tensor, nn

from stm_fast.errors import InputError
from stm_fast.network.deploy import panels
from stm_fast.network.efficientnet import InvertedBottleneck, Stem
from stm_fast.ops import cpp_ops

DTYPES = (torch.float32, torch.bfloat16)
KERNELS = (3, 5)
STRIDES = (1, 2)

torch.library.define(
    "stm_fast::inverted_bottleneck",
    "(Tensor(a!) out, Tensor x, Tensor? expand, Tensor? expand_bias, Tensor depthwise, Tensor depthwise_bias, "
    "Tensor project, Tensor project_bias, int expanded, int kernel, int stride, bool residual) -> ()",
)
torch.library.define(
    "stm_fast::convolution_relu6",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, int kernel, int stride) -> ()",
)
# both only write to `out`
torch.library.register_fake("stm_fast::inverted_bottleneck", lambda *_: None)
torch.library.register_fake("stm_fast::convolution_relu6", lambda *_: None)


def absent_reasons() -> list[str]:
    """Why the extension's operators are not available; empty if they are."""
    return cpp_ops.operator_absent_reasons("stm_fast::inverted_bottleneck")


class FusedBottleneck(nn.Module):
    """Replaces an `InvertedBottleneck` from Cin channels, expanded to M, to Cout; without gradients.

    Intermediate results are float32. With bfloat16 on a CPU that has instructions for it, the input of the last product
    is rounded to bfloat16.

    Raises:
        InputError: the operators do not support the block, see `fits`.
    """

    expand: Tensor | None  # [ceil(M / 16), Cin, 16], or in pairs of bfloat16 [ceil(M / 16), ceil(Cin / 2), 16, 2]
    expand_bias: Tensor | None  # [M'], float32, where M' is M rounded up to a multiple of 16
    depthwise: Tensor  # [k * k, M'], float32
    depthwise_bias: Tensor  # [M'], float32
    project: Tensor  # [ceil(Cout / 16), M, 16], or in pairs like `expand`
    project_bias: Tensor  # [Cout'], float32

    def __init__(self, block: InvertedBottleneck) -> None:
        super().__init__()
        if not fits(block.depthwise):
            raise InputError(f"block: found {block.depthwise}, expected {_COVERED}")
        expand, project = block.expand, block.project
        self.register_buffer("expand", None if expand is None else panels.packed(expand.weight.flatten(1)))
        self.register_buffer("expand_bias", None if expand is None else panels.bias(expand))
        self.register_buffer("depthwise", panels.padded(block.depthwise.weight.float().flatten(1).T))
        self.register_buffer("depthwise_bias", panels.bias(block.depthwise))
        self.register_buffer("project", panels.packed(project.weight.flatten(1)))
        self.register_buffer("project_bias", panels.bias(project))
        self._expanded, self._channels = block.depthwise.out_channels, project.out_channels
        self._kernel, self._stride = int(block.depthwise.kernel_size[0]), int(block.depthwise.stride[0])
        self._residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        """``[B, Cin, H, W]``, preferably channels last, to ``[B, Cout, ceil(H / stride), ceil(W / stride)]``.

        Returns:
            Channels last.

        Raises:
            InputError: `x` and the weights have different dtypes.
            RuntimeError: a wrong number of channels.
        """
        if x.dtype != self.project.dtype:
            raise InputError(f"x: found {x.dtype}, expected that of the weights, {self.project.dtype}")
        images, out = _images(x, self._stride, self._channels)
        weights = (self.expand, self.expand_bias, self.depthwise, self.depthwise_bias, self.project, self.project_bias)
        torch.ops.stm_fast.inverted_bottleneck(
            out, images, *weights, self._expanded, self._kernel, self._stride, self._residual
        )
        return out.permute(0, 3, 1, 2)


class FusedStem(nn.Module):
    """Replaces a `Stem`, a convolution of few channels and its ReLU6; without gradients.

    All products are in float32.

    Raises:
        InputError: the operator does not support the convolution, see `fits`.
    """

    weight: Tensor  # [ceil(K / 16), k * k * C, 16], float32
    bias: Tensor  # [K rounded up to a multiple of 16], float32

    def __init__(self, conv: Stem) -> None:
        super().__init__()
        if not fits(conv):
            raise InputError(f"conv: found {conv}, expected {_COVERED}")
        self.register_buffer("weight", panels.packed(conv.weight.float().permute(0, 2, 3, 1).flatten(1)))
        self.register_buffer("bias", panels.bias(conv))
        self._channels, self._kernel, self._stride = conv.out_channels, int(conv.kernel_size[0]), int(conv.stride[0])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, preferably channels last, to ``[B, K, ceil(H / stride), ceil(W / stride)]``.

        Returns:
            Channels last.

        Raises:
            RuntimeError: a dtype other than float32 and bfloat16, or a wrong number of channels.
        """
        images, out = _images(x, self._stride, self._channels)
        torch.ops.stm_fast.convolution_relu6(out, images, self.weight, self.bias, self._kernel, self._stride)
        return out.permute(0, 3, 1, 2)


def replace_bottlenecks(module: nn.Module) -> None:
    """Replaces every inverted bottleneck and stem in `module` that the operators support."""
    for name, child in module.named_children():
        if isinstance(child, Stem) and fits(child):
            setattr(module, name, FusedStem(child))
        elif isinstance(child, InvertedBottleneck) and fits(child.depthwise):
            setattr(module, name, FusedBottleneck(child))
        else:
            replace_bottlenecks(child)


_COVERED = "a kernel of 3 x 3 or 5 x 5, stride 1 or 2, and float32 or bfloat16"


def fits(conv: nn.Conv2d) -> bool:
    """Whether the operators support a stem, or a bottleneck with this depthwise convolution."""
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    covered = conv.kernel_size[0] in KERNELS and conv.stride[0] in STRIDES
    return square and covered and conv.weight.dtype in DTYPES


def _images(x: Tensor, stride: int, channels: int) -> tuple[Tensor, Tensor]:
    """The input as ``[B, H, W, C]``, and an uninitialized output."""
    images = panels.images(x)
    batch, height, width, _ = images.shape
    return images, images.new_empty(batch, -(-height // stride), -(-width // stride), channels)
