"""The stem of a ResNet with its activation and pooling as one operator, in float32 and bfloat16 on a CPU.

The largest map of the network, at stride 2, is then never stored: csrc/include/stm_fast/convolution.h explains it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.errors import InputError
from stm_fast.network.deploy import panels
from stm_fast.network.deploy.shared_work import SharingMemoryEncoder, with_weights
from stm_fast.network.encoders import QueryEncoder
from stm_fast.ops import cpp_ops

MOST_ROWS = 7  # of a window


class StemConv(nn.Module):
    """Replaces the first convolution of a ResNet; without gradients.

    Raises:
        InputError: the operator does not support the convolution, see `fits`.
    """

    weight: Tensor  # [ceil(K / 16), k * k * C', 16], or in pairs of bfloat16 [ceil(K / 16), k * k * C' / 2, 16, 2]
    bias: Tensor  # [K rounded up to a multiple of 16], float32

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if not fits(conv):
            raise InputError(
                f"conv: found {conv}, expected an odd window of up to {MOST_ROWS}, padded to the same size"
            )
        self._kernel, self._stride, self._channels = conv.kernel_size[0], conv.stride[0], conv.out_channels
        # pairs of bfloat16 need an even number of channels: C'
        self._inputs = conv.in_channels + (conv.in_channels % 2 if conv.weight.dtype == torch.bfloat16 else 0)
        weight = F.pad(conv.weight.permute(0, 2, 3, 1), (0, self._inputs - conv.in_channels))
        self.register_buffer("weight", panels.packed(weight.flatten(1)))
        self.register_buffer("bias", panels.bias(conv))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, ceil(H / stride), ceil(W / stride)]``, channels last."""
        images = self._padded(x)
        out = images.new_empty(len(x), *self._size(x), self._channels)
        torch.ops.stm_fast.convolution(out, images, self.weight, self.bias, self._kernel, self._stride, False, False)
        return out.permute(0, 3, 1, 2)

    def pooled(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """The maximum of the ReLU of `forward`, over windows of 3x3 with stride 2.

        Args:
            x: ``[B, C, H, W]``.
            added: to the result of `forward`, of its shape or with a batch of one, preferably channels last.

        Returns:
            ``[B, K, h, w]``, channels last, half as large as the result of `forward`, rounded up.
        """
        images = self._padded(x)
        height, width = self._size(x)
        out = images.new_empty(len(x), -(-height // 2), -(-width // 2), self._channels)
        shift = None if added is None else panels.images(added)
        torch.ops.stm_fast.convolution_pool(out, images, self.weight, self.bias, shift, self._kernel, self._stride)
        return out.permute(0, 3, 1, 2)

    def _size(self, x: Tensor) -> tuple[int, int]:
        return -(-x.shape[2] // self._stride), -(-x.shape[3] // self._stride)

    def _padded(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` as ``[B, H + k - 1, W + k - 1, C']`` with a border of zeros."""
        batch, channels, height, width = x.shape
        border = self._kernel // 2
        images = x.detach().new_zeros(batch, height + 2 * border, width + 2 * border, self._inputs)
        images[:, border : border + height, border : border + width, :channels] = x.detach().permute(0, 2, 3, 1)
        return images


class PooledQueryEncoder(QueryEncoder):
    """A `QueryEncoder` whose BatchNorm is folded and whose first convolution is a `StemConv`."""

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `QueryEncoder`."""
        return self.residual_stages(_stem(self.conv1).pooled(self.normalize(frame)))


class PooledMemoryEncoder(SharingMemoryEncoder):
    """A `SharingMemoryEncoder` whose first convolutions are `StemConv`; with one object, frame and masks share one."""

    conv1_both: StemConv

    def forward(self, frame: Tensor, mask: Tensor, others: Tensor, batch_index: Tensor | None = None) -> Tensor:
        """As in `SharingMemoryEncoder`."""
        if len(mask) != 1 or batch_index is not None:
            return super().forward(frame, mask, others, batch_index)
        return self.features_of_one(torch.cat([self.trunk.normalize(frame), mask, others], dim=1))

    def features_of_one(self, frame_and_masks: Tensor) -> Tensor:
        """[1, 5, H, W], the normalized frame and both masks of one object, to r4 [1, C4, H/16, W/16]."""
        r4, _, _ = self.trunk.residual_stages(self.conv1_both.pooled(frame_and_masks))
        return r4

    def features(self, of_frame: Tensor, masks: Tensor) -> Tensor:
        """As in `SharingMemoryEncoder`."""
        r4, _, _ = self.trunk.residual_stages(_stem(self.conv1_masks).pooled(masks, of_frame))
        return r4


def replace_stems(model: nn.Module) -> None:
    """Replaces the first convolutions of every ResNet in `model` that the operators support."""
    for module in list(model.modules()):
        if isinstance(module, SharingMemoryEncoder) and fits(module.trunk.conv1) and fits(module.conv1_masks):
            weight = torch.cat([module.trunk.conv1.weight, module.conv1_masks.weight], dim=1)  # [C1, 5, k, k]
            both = with_weights(module.trunk.conv1, weight, module.trunk.conv1.bias)
            module.add_module("conv1_both", StemConv(both))
            module.trunk.add_module("conv1", StemConv(module.trunk.conv1))
            module.add_module("conv1_masks", StemConv(module.conv1_masks))
            module.__class__ = PooledMemoryEncoder
        elif isinstance(module, QueryEncoder) and fits(module.conv1):
            module.add_module("conv1", StemConv(module.conv1))
            module.__class__ = PooledQueryEncoder


def fits(conv: nn.Module) -> bool:
    """Whether the operators support a convolution: an odd window of up to seven rows, padded to the same size."""
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or conv.dilation != (1, 1):
        return False
    kernel, stride = conv.kernel_size, conv.stride
    square = kernel[0] == kernel[1] and stride[0] == stride[1] and kernel[0] % 2 == 1 and kernel[0] <= MOST_ROWS
    return square and conv.padding == (kernel[0] // 2, kernel[0] // 2) and cpp_ops.convolves(conv.weight.dtype)


def _stem(conv: nn.Module) -> StemConv:
    assert isinstance(conv, StemConv)
    return conv
