"""Convolutions of 3 x 3 on a CPU with a quarter of the products: Winograd's minimal filtering F(4 x 4, 3 x 3).

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. The input's tiles of 6 x 6 are
transformed, multiplied with transformed weights as 36 matrix products over the channels, and transformed back. The
transforms are those of the C++ engine; csrc/include/stm_fast/winograd.h says more.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.ops import cpp_ops
from stm_fast.ops.room import ROOM

TILE = 4
POINTS = 36
LANES = 8  # channels are a multiple of it
# points of this many tiles stay in a core's share of the last cache between the transforms and the products
TILES_AT_A_TIME = 216
# and their points are no more than this, or at least one row of tiles
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

torch.library.define("stm_fast::winograd_input", "(Tensor picture, int first_row, int rows, bool relu) -> Tensor")
torch.library.define(
    "stm_fast::winograd_output",
    "(Tensor(a!) picture, Tensor points, Tensor bias, Tensor? residual, int first_row, int rows) -> ()",
)


def _fake_input(picture: Tensor, first_row: int, rows: int, relu: bool) -> Tensor:
    return picture.new_empty(POINTS, rows * -(-picture.shape[1] // TILE), picture.shape[2])


def _fake_output(
    picture: Tensor, points: Tensor, bias: Tensor, residual: Tensor | None, first_row: int, rows: int
) -> None:
    return None


torch.library.register_fake("stm_fast::winograd_input", _fake_input)
torch.library.register_fake("stm_fast::winograd_output", _fake_output)


class Convolution(NamedTuple):
    """What `conv3x3` takes of one."""

    points: Tensor  # [36, C, K]
    bias: Tensor  # [K]


def absent_reasons() -> list[str]:
    """Why there are no such convolutions here; nothing where there are."""
    return cpp_ops.operator_absent_reasons("stm_fast::winograd_input")


def transform_weight(weight: Tensor) -> Tensor:
    """The weight ``[K, C, 3, 3]`` of a convolution as `conv3x3` takes it: ``[36, C, K]``, rounded once."""
    transform = _WEIGHT_TRANSFORM.to(weight.device)
    points = torch.einsum("ai,kcij,bj->abck", transform, weight.double(), transform)  # [6, 6, C, K]
    return points.reshape(POINTS, *points.shape[2:]).to(weight.dtype).contiguous()


def conv3x3(
    x: Tensor,
    points: Tensor,
    bias: Tensor,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """A convolution of 3 x 3 with stride 1 and a border of zeros, in float32 on a CPU; without gradients.

    Rounding errors are about four times those of the direct convolution.

    Args:
        x: ``[B, C, H, W]``, best laid out channels last; C a multiple of 8.
        points: ``[36, C, K]`` of `transform_weight`; K a multiple of 8.
        bias: ``[K]``.
        relu: negative inputs count as 0.
        residual: ``[B, K, H, W]``, added to the result.
        overwrite: the result may take the residual's place, and does where that is channels last.

    Returns:
        ``[B, K, H, W]``, channels last.
    """
    pictures = x.detach().permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]
    batch, height, width, _ = pictures.shape
    added = None if residual is None else residual.detach().permute(0, 2, 3, 1).contiguous()  # [B, H, W, K]
    # an element of the residual is read just before that of the result is written
    out = added if added is not None and overwrite else ROOM.empty(pictures, batch, height, width, points.shape[2])
    rows, step = -(-height // TILE), _tile_rows_at_a_time(pictures)
    for index in range(batch):
        for first in range(0, rows, step):
            count = min(step, rows - first)
            products = _products(pictures[index], points, first, count, relu)
            torch.ops.stm_fast.winograd_output(
                out[index], products, bias, None if added is None else added[index], first, count
            )
            del products  # before the next ones need their room
    return out.permute(0, 3, 1, 2)


def residual_block(x: Tensor, first: Convolution, second: Convolution) -> Tensor:
    """Twice an activation and a convolution of 3 x 3 around an identity, in float32 on a CPU; without gradients.

    The second convolution follows the first strip by strip, so that no more than three strips lie between them. Its
    strip takes the place of the input's, of which nothing but the residual is needed then.

    Args:
        x: ``[B, C, H, W]``, overwritten where it is channels last; C a multiple of 8.
        first: from C channels to C.
        second: likewise.

    Returns:
        ``[B, C, H, W]``, channels last.
    """
    pictures = x.detach().permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]
    rows, step = -(-pictures.shape[1] // TILE), _tile_rows_at_a_time(pictures)
    for picture in pictures:
        near: list[Tensor] = []  # strips of the first convolution: the one above, the one here, the one below
        for start in range(0, rows + step, step):
            if start < rows:
                near.append(_strip(picture, first, start, min(step, rows - start)))
            if start > 0:
                count = min(step, rows - start + step)
                here = ROOM.empty(picture, sum(map(len, near)), *picture.shape[1:])
                torch.cat(near, out=here)
                above = 0 if start == step else step
                products = _products(here, second.points, above, count, True)
                place = picture[(start - step) * TILE :][: count * TILE]
                torch.ops.stm_fast.winograd_output(place, products, second.bias, place, 0, count)
                del products, here
                near = near[-2:]
    return pictures.permute(0, 3, 1, 2)


def _strip(picture: Tensor, convolution: Convolution, first: int, count: int) -> Tensor:
    """The convolution of an activation, ``[rows, W, K]``, for `count` rows of tiles."""
    products = _products(picture, convolution.points, first, count, True)
    height = min((first + count) * TILE, picture.shape[0]) - first * TILE
    out = ROOM.empty(picture, height, picture.shape[1], convolution.points.shape[2])
    torch.ops.stm_fast.winograd_output(out, products, convolution.bias, None, 0, count)
    return out


def _tile_rows_at_a_time(pictures: Tensor) -> int:
    """Of ``[B, H, W, C]``."""
    _, _, width, channels = pictures.shape
    # every thread has a row of tiles to transform; a program being traced cannot ask how many there are
    threads = _THREADS_TRACED if torch.compiler.is_compiling() else torch.get_num_threads()
    tiles = min(TILES_AT_A_TIME, STRIP_BYTES // (POINTS * channels * pictures.itemsize))
    return max(-(-tiles // -(-width // TILE)), threads)


def _products(picture: Tensor, points: Tensor, first: int, count: int, relu: bool) -> Tensor:
    """``[36, tiles, K]`` of `count` rows of tiles."""
    strip = torch.ops.stm_fast.winograd_input(picture, first, count, relu)  # [36, tiles, C]
    return torch.bmm(strip, points, out=ROOM.empty(strip, POINTS, strip.shape[1], points.shape[2]))
