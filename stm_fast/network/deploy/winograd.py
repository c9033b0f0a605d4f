"""3x3 convolutions on a CPU with a quarter of the multiplications: Winograd filtering F(4x4, 3x3).

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. 6x6 tiles of the input are
transformed, multiplied by transformed weights in 36 matrix products over the channels, and transformed back. The
transforms are in the C++ extension; csrc/include/stm_fast/winograd.h explains them.
"""

import torch
from torch import Tensor, nn

from stm_fast.network.decoder import ResidualBlock
from stm_fast.ops import cpp_ops

TILE = 4
POINTS = 36
LANES = 8  # numbers of channels must be multiples of this
# few enough tiles that their points stay in a core's share of the last-level cache between transforms and products
TILES_AT_A_TIME = 216
# largest number of bytes of points, unless one row of tiles has more
STRIP_BYTES = 2**23
_THREADS_TRACED = 8

# G of the paper's equation 24, for the points 0, 1, -1, 2, -2 and infinity
_WEIGHT_TRANSFORM = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)

torch.library.define("stm_fast::winograd_input", "(Tensor image, int first_row, int rows, bool relu) -> Tensor")
torch.library.define(
    "stm_fast::winograd_output",
    "(Tensor(a!) image, Tensor points, Tensor bias, Tensor? residual, int first_row, int rows) -> ()",
)


def _fake_input(image: Tensor, first_row: int, rows: int, relu: bool) -> Tensor:
    return image.new_empty(POINTS, rows * -(-image.shape[1] // TILE), image.shape[2])


torch.library.register_fake("stm_fast::winograd_input", _fake_input)
torch.library.register_fake("stm_fast::winograd_output", lambda *_: None)  # only writes to `image`


def absent_reasons() -> list[str]:
    """Why the extension's transforms are not available; empty if they are."""
    return cpp_ops.operator_absent_reasons("stm_fast::winograd_input")


def transform_weight(weight: Tensor) -> Tensor:
    """Transforms the weight ``[K, C, 3, 3]`` of a convolution to ``[36, C, K]``, in float64, for `conv3x3`."""
    transform = _WEIGHT_TRANSFORM.to(weight.device)
    points = torch.einsum("ai,kcij,bj->abck", transform, weight.double(), transform)  # [6, 6, C, K]
    return points.reshape(POINTS, *points.shape[2:]).to(weight.dtype).contiguous()


def conv3x3(x: Tensor, points: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution with stride 1 and zero padding, in float32 on a CPU; without gradients.

    Rounding errors are about four times those of the direct convolution.

    Args:
        x: ``[B, C, H, W]``, preferably channels last; C a multiple of 8.
        points: ``[36, C, K]`` from `transform_weight`; K a multiple of 8.
        bias: ``[K]``.

    Returns:
        ``[B, K, H, W]``, channels last.
    """
    images = _channels_last(x)
    batch, height, width, _ = images.shape
    out = images.new_empty(batch, height, width, points.shape[2])
    rows, step = -(-height // TILE), _tile_rows_at_a_time(images)
    for image, result in zip(images, out, strict=True):
        for first in range(0, rows, step):
            count = min(step, rows - first)
            products = _products(image, points, first, count, relu=False)
            torch.ops.stm_fast.winograd_output(result, products, bias, None, first, count)
            del products  # freed before the next ones are allocated
    return out.permute(0, 3, 1, 2)


class WinogradConv(nn.Module):
    """Replaces a 3x3 convolution."""

    points: Tensor  # [36, C, K]
    bias: Tensor  # [K]

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("points", transform_weight(conv.weight.detach()))
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, K, H, W]``, channels last."""
        return conv3x3(x, self.points, self.bias)


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
        images = _channels_last(x)
        rows, step = -(-images.shape[1] // TILE), _tile_rows_at_a_time(images)
        for image in images:
            near: list[Tensor] = []  # previous, current and next strip of the first convolution
            for start in range(0, rows + step, step):
                if start < rows:
                    near.append(self._first(image, start, min(step, rows - start)))
                if start > 0:
                    count = min(step, rows - start + step)
                    self._second(torch.cat(near), 0 if start == step else step, image[(start - step) * TILE :], count)
                    near = near[-2:]
        return images.permute(0, 3, 1, 2)

    def _first(self, image: Tensor, first: int, count: int) -> Tensor:
        """The first convolution of `count` rows of tiles: ``[rows, W, C]``."""
        products = _products(image, self.conv1.points, first, count, relu=True)
        height = min((first + count) * TILE, image.shape[0]) - first * TILE
        out = image.new_empty(height, *image.shape[1:])
        torch.ops.stm_fast.winograd_output(out, products, self.conv1.bias, None, 0, count)
        return out

    def _second(self, strips: Tensor, first: int, rest: Tensor, count: int) -> None:
        """Adds the second convolution of `count` rows of tiles, from row `first` of `strips`, to the top of `rest`."""
        products = _products(strips, self.conv2.points, first, count, relu=True)
        rest = rest[: count * TILE]
        torch.ops.stm_fast.winograd_output(rest, products, self.conv2.bias, rest, 0, count)


def replace_convolutions(module: nn.Module) -> None:
    """Replaces every 3x3 convolution in `module` that has stride 1 and multiples of 8 channels."""
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
    return three and plain and conv.in_channels % LANES == 0 and conv.out_channels % LANES == 0


def _channels_last(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as contiguous ``[B, H, W, C]``, a view if `x` is channels last."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _tile_rows_at_a_time(images: Tensor) -> int:
    """Rows of tiles in a strip of ``[B, H, W, C]``."""
    _, _, width, channels = images.shape
    # at least one row of tiles per thread; torch.compile cannot trace the number of threads
    threads = _THREADS_TRACED if torch.compiler.is_compiling() else torch.get_num_threads()
    tiles = min(TILES_AT_A_TIME, STRIP_BYTES // (POINTS * channels * images.itemsize))
    return max(-(-tiles // -(-width // TILE)), threads)


def _products(image: Tensor, points: Tensor, first: int, count: int, relu: bool) -> Tensor:
    """``[36, tiles, K]`` of `count` rows of tiles of ``[H, W, C]``; `relu` sets negative inputs to 0."""
    strip = torch.ops.stm_fast.winograd_input(image, first, count, relu)  # [36, tiles, C]
    return torch.bmm(strip, points)
