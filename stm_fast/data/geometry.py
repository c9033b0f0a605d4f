"""Where the pixels of a crop come from: crop, motion and thin-plate warp composed into one map, sampled once.

A view is a matrix [2, 3] that takes an offset from the crop's centre, in pixels of the crop (x, y, 1), to a point of
the picture in pixels, whose first pixel covers [0, 1).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors

Matrix = npt.NDArray[np.float64]
Numbers = float | Matrix  # one, or one for each of several clips

CONTROL_POINTS = 4  # a side
MAX_SHRINK = 8  # what a JPEG can be decoded at


class Motion(NamedTuple):
    """Ranges of a motion a frame: degrees, degrees, logarithm, share of the crop's shorter side."""

    rotation: float
    shear: float
    zoom: float
    translation: float


def crop_view(
    picture: tuple[Numbers, Numbers],
    size: tuple[int, int],
    area: Numbers,
    stretch: Numbers,
    place: tuple[Numbers, Numbers],
) -> Matrix:
    """The view of an upright crop inside the picture; of several clips at once, [..., 2, 3].

    Args:
        picture: H, W of the picture.
        size: h, w of the crop in its own pixels.
        area: share of the picture's area it covers; less where it would not fit otherwise.
        stretch: how much wider than the crop's own shape it is.
        place: y, x of its centre in the picture, moved inwards where the crop would reach beyond an edge.
    """
    height, width = picture
    aspect = size[1] / size[0] * stretch
    tall = np.minimum(np.minimum(np.sqrt(area * height * width / aspect), height), width / aspect)
    wide = tall * aspect
    y = np.minimum(np.maximum(place[0], tall / 2), height - tall / 2)
    x = np.minimum(np.maximum(place[1], wide / 2), width - wide / 2)
    zero = np.zeros_like(tall)
    return _matrices([[wide / size[1], zero, x], [zero, tall / size[0], y]])


def mirrored(view: Matrix) -> Matrix:
    """The view seen left to right."""
    other: Matrix = view * np.array([-1.0, 1.0, 1.0])
    return other


def draw_path(motion: Motion, frames: int, side: int, generator: np.random.Generator) -> Matrix:
    """A random walk of motions: matrices [T, 3, 3] of offsets in the crop, in pixels of a crop of this side."""
    reach = reach_of(motion, side)
    return path_of(generator.uniform(-reach, reach, (frames, 5)))


def reach_of(motion: Motion, side: int) -> Matrix:
    """How far one frame goes at most: [5]."""
    return np.array([*np.radians(motion[:2]), motion.zoom, motion.translation * side, motion.translation * side])


def path_of(steps: Matrix) -> Matrix:
    """Steps [..., T, 5] of `reach_of`, each on top of those before it, as matrices [..., T, 3, 3]."""
    angle, shear, zoom, x, y = np.moveaxis(np.cumsum(steps, axis=-2), -1, 0)
    cos, sin, slant, grow = np.cos(angle), np.sin(angle), np.tan(shear), np.exp(-zoom)
    zero, one = np.zeros_like(x), np.ones_like(x)
    return _matrices(
        [
            [grow * cos, grow * (cos * slant - sin), x],
            [grow * sin, grow * (sin * slant + cos), y],
            [zero, zero, one],
        ]
    )


def draw_bends(strength: float, frames: int, size: tuple[int, int], generator: np.random.Generator) -> Tensor:
    """A random walk of thin-plate warps: how far each pixel of the crop goes, in its pixels, [T, h, w, 2]."""
    reach = strength * min(size)
    steps = generator.uniform(-reach, reach, (frames, CONTROL_POINTS**2, 2)).cumsum(axis=0)
    return bends_of(torch.from_numpy(steps).float(), size)


def bends_of(moved: Tensor, size: tuple[int, int]) -> Tensor:
    """How far each pixel of the crop goes, [..., h, w, 2], where control points are moved by [..., K, 2]."""
    bends: Tensor = _thin_plates(size).to(moved.device) @ moved  # [..., h w, 2]
    return bends.view(*moved.shape[:-2], *size, 2)


def sampling_grid(
    views: Matrix, size: tuple[int, int], picture: tuple[int, int], bends: Tensor | None = None, shrink: int = 1
) -> Tensor:
    """Points of `grid_sample` for views [T, 2, 3] of a picture: float32 [T, h, w, 2].

    Args:
        size: h, w of the crop.
        picture: H, W of the picture.
        bends: [T, h, w, 2] of `draw_bends`.
        shrink: blocks of this side are one pixel of the picture to be sampled, the last ones perhaps not full.
    """
    height, width = (math.ceil(side / shrink) * shrink for side in picture)
    unit = torch.from_numpy(views * 2 / np.array([[width], [height]])).float()[..., None, None]  # [T, 2, 3, 1, 1]
    x, y = offsets(size)
    if bends is not None:
        x, y = x + bends[..., 0], y + bends[..., 1]  # [T, h, w]
    return torch.stack([a * x + (b * y + (c - 1)) for a, b, c in (row.unbind(1) for row in unit.unbind(1))], -1)


def resample(data: Tensor, grid: Tensor, padding: str = "reflection") -> Tensor:
    """Values of data [T or 1, C, H, W] at a grid [T, h, w, 2]: float32 [T, C, h, w].

    A `tv_tensors.Mask` is sampled at the nearest pixel, so that its ids stay ids; anything else bilinearly.
    """
    mode = "nearest" if isinstance(data, tv_tensors.Mask) else "bilinear"
    plain = data.as_subclass(Tensor).float().expand(len(grid), -1, -1, -1)
    return F.grid_sample(plain, grid, mode=mode, padding_mode=padding, align_corners=False)


def affordable_shrink(views: Matrix) -> int:
    """1, 2, 4 or 8: blocks of so many pixels of the picture a side are no larger than a pixel of any view [T, 2, 3]."""
    least = np.sqrt(np.abs(np.linalg.det(views[:, :, :2]))).min()
    return 1 << int(np.log2(np.clip(least, 1, MAX_SHRINK)))


def offsets(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Offsets of the pixels' centres from the middle: x [1, w] and y [h, 1]."""
    height, width = size
    x, y = torch.arange(width) + (1 - width) / 2, torch.arange(height) + (1 - height) / 2
    return x[None], y[:, None]


def _matrices(rows: Sequence[Sequence[Matrix]]) -> Matrix:
    """Rows of numbers, each [...], as matrices [..., rows, columns]."""
    return np.stack([np.stack(row, -1) for row in rows], -2)


@lru_cache(maxsize=8)
def _thin_plates(size: tuple[int, int]) -> Tensor:
    """What each pixel gets of each control point's displacement: [h w, K], float32.

    The thin-plate spline through K points is linear in their displacements (Bookstein, 1989, equation 5), so its
    weights are solved for once.
    """
    line = torch.linspace(-1, 1, CONTROL_POINTS, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)  # [K, 2]
    x, y = offsets(size)
    pixels = torch.cartesian_prod(y[:, 0] * 2 / size[0], x[0] * 2 / size[1]).flip(1).double()  # [h w, 2], in [-1, 1]
    count = len(points)
    affine = torch.cat([torch.ones(count, 1, dtype=torch.float64), points], 1)  # [K, 3]
    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count, :count] = _bending(points, points)
    system[:count, count:] = affine
    system[count:, :count] = affine.T
    weights = torch.linalg.inv(system)[:, :count]  # [K + 3, K]
    basis = torch.cat([_bending(pixels, points), torch.ones(len(pixels), 1, dtype=torch.float64), pixels], 1)
    plates: Tensor = basis @ weights
    return plates.float()


def _bending(first: Tensor, second: Tensor) -> Tensor:
    """r^2 log r^2 of the distances between two sets of points: [n, m]."""
    squared = (first[:, None] - second).square().sum(-1)
    bending: Tensor = torch.special.xlogy(squared, squared)
    return bending
