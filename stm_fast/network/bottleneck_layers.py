"""EfficientNet-Lite's bottlenecks and stem as one operator each, in float32 and bfloat16 on a CPU."""

from torch import Tensor, nn

from stm_fast.network.efficientnet import InvertedBottleneck, Stem
from stm_fast.ops import inverted_bottleneck as ops


class FusedBottleneck(nn.Module):
    """An `InvertedBottleneck` without its widened map, with the weights of another one."""

    expand: Tensor | None
    expand_bias: Tensor | None
    depthwise: Tensor
    depthwise_bias: Tensor
    project: Tensor
    project_bias: Tensor

    def __init__(self, block: InvertedBottleneck) -> None:
        super().__init__()
        packed = ops.pack(_weights(block))
        for name in ops.Packed._fields[:-2]:
            self.register_buffer(name, getattr(packed, name))
        self._expanded, self._channels = packed.expanded, packed.channels
        self._stride = int(block.depthwise.stride[0])
        self._residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, ceil(H / stride), ceil(W / stride)]``, channels last."""
        packed = ops.Packed(
            self.expand,
            self.expand_bias,
            self.depthwise,
            self.depthwise_bias,
            self.project,
            self.project_bias,
            self._expanded,
            self._channels,
        )
        return ops.inverted_bottleneck(x, packed, stride=self._stride, residual=self._residual)


class FusedStem(nn.Module):
    """A `Stem` with the weights of another one."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Stem) -> None:
        super().__init__()
        packed = ops.pack_convolution(conv.weight.detach(), _bias(conv))
        self.register_buffer("weight", packed.weight)
        self.register_buffer("bias", packed.bias)
        self._channels, self._stride = packed.channels, int(conv.stride[0])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, ceil(H / stride), ceil(W / stride)]``, channels last."""
        packed = ops.PackedConvolution(self.weight, self.bias, self._channels)
        return ops.convolution_relu6(x, packed, stride=self._stride)


def replace_bottlenecks(module: nn.Module) -> None:
    """Replaces every bottleneck inside `module` that can be, and the stems of its trunks."""
    for name, child in module.named_children():
        if isinstance(child, Stem) and child.weight.dtype in ops.DTYPES:
            setattr(module, name, FusedStem(child))
        elif isinstance(child, InvertedBottleneck) and _fits(child):
            setattr(module, name, FusedBottleneck(child))
        else:
            replace_bottlenecks(child)


def _fits(block: InvertedBottleneck) -> bool:
    conv = block.depthwise
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    covered = conv.kernel_size[0] in ops.KERNELS and conv.stride[0] in ops.STRIDES
    return square and covered and conv.weight.dtype in ops.DTYPES


def _weights(block: InvertedBottleneck) -> ops.Weights:
    return ops.Weights(
        None if block.expand is None else block.expand.weight.detach(),
        None if block.expand is None else _bias(block.expand),
        block.depthwise.weight.detach(),
        _bias(block.depthwise),
        block.project.weight.detach(),
        _bias(block.project),
    )


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
