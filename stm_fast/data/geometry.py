"""Geometry of training clips: crop, motion and thin-plate warp are composed into one map, and sampled once.

A view is a matrix [2, 3] that maps an offset from the crop's center, in pixels of the crop (x, y, 1), to a point of the
image, in pixels; the first pixel covers [0, 1).
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
Flags = bool | npt.NDArray[np.bool_]

CONTROL_POINTS = 4  # per side
MAX_SHRINK = 8  # of a JPEG decoder


class Motion(NamedTuple):
    """Ranges of the motion per frame."""

    rotation: float  # degrees
    shear: float  # degrees
    zoom: float  # natural logarithm
    translation: float  # share of the crop's shorter side


def crop_view(
    image: tuple[Numbers, Numbers],
    size: tuple[int, int],
    area: Numbers,
    stretch: Numbers,
    place: tuple[Numbers, Numbers],
) -> Matrix:
    """The view [..., 2, 3] of an upright crop, of one clip or several at once.

    Args:
        image: H, W of the image.
        size: h, w of the crop in its own pixels.
        area: share of the image's area that the crop covers; reduced if the crop would not fit.
        stretch: factor on the crop's aspect ratio.
        place: y, x of the crop's center in the image; moved so that the crop does not cross an edge.
    """
    height, width = image
    aspect = size[1] / size[0] * stretch
    tall = np.minimum(np.minimum(np.sqrt(area * height * width / aspect), height), width / aspect)
    wide = tall * aspect
    y = np.minimum(np.maximum(place[0], tall / 2), height - tall / 2)
    x = np.minimum(np.maximum(place[1], wide / 2), width - wide / 2)
    zero = np.zeros_like(tall)
    return _matrices([[wide / size[1], zero, x], [zero, tall / size[0], y]])


def mirrored(view: Matrix) -> Matrix:
    """The view, mirrored left to right."""
    other: Matrix = view * np.array([-1.0, 1.0, 1.0])
    return other


def pasted_views(scale: Numbers, source: tuple[Numbers, Numbers], target: Matrix, path: Matrix, flip: Flags) -> Matrix:
    """Views [..., T, 2, 3] that show a point of an image at a position in the crop and rotate about it.

    Args:
        scale: pixels of the image per pixel of the crop, [...].
        source: y, x of the point in the image, [...] each.
        target: x, y of the position as an offset from the crop's center, [..., 2].
        path: motions [..., T, 3, 3].
        flip: whether to mirror the image left to right, [...].
    """
    # first translate to the target, then along the path
    path = path.copy()
    path[..., :2, 2] = -(path[..., :2, :2] @ (target[..., None, :] + path[..., :2, 2])[..., None])[..., 0]
    zero = np.zeros_like(scale)
    view = _matrices([[scale, zero, source[1]], [zero, scale, source[0]]])
    return np.where(np.asarray(flip)[..., None, None], mirrored(view), view)[..., None, :, :] @ path


def bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a mask [H, W], the last two exclusive; zeros if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def draw_path(motion: Motion, frames: int, side: int, generator: np.random.Generator) -> Matrix:
    """A random walk of motions: matrices [T, 3, 3] of offsets, in pixels, in a crop whose shorter side is `side`."""
    largest = motion_range(motion, side)
    return motion_path(generator.uniform(-largest, largest, (frames, 5)))


def motion_range(motion: Motion, side: int) -> Matrix:
    """The largest motion per frame, [5]: rotation and shear in radians, log zoom, translation x and y in pixels."""
    return np.array([*np.radians(motion[:2]), motion.zoom, motion.translation * side, motion.translation * side])


def motion_path(steps: Matrix) -> Matrix:
    """The cumulative sums of motions [..., T, 5], in the units of `motion_range`, as matrices [..., T, 3, 3]."""
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


def draw_warps(strength: float, frames: int, size: tuple[int, int], generator: np.random.Generator) -> Tensor:
    """A random walk of thin-plate warps: displacements of the crop's pixels, in pixels, [T, h, w, 2]."""
    largest = strength * min(size)
    steps = generator.uniform(-largest, largest, (frames, CONTROL_POINTS**2, 2)).cumsum(axis=0)
    return warps_of(torch.from_numpy(steps).float(), size)


def warps_of(moved: Tensor, size: tuple[int, int]) -> Tensor:
    """Displacements of the crop's pixels [..., h, w, 2] from those of the control points [..., K, 2]."""
    warps: Tensor = _thin_plates(size).to(moved.device) @ moved  # [..., h w, 2]
    return warps.view(*moved.shape[:-2], *size, 2)


def sampling_grid(
    views: Matrix, size: tuple[int, int], image: tuple[int, int], warps: Tensor | None = None, shrink: int = 1
) -> Tensor:
    """The grid of `grid_sample` for views [T, 2, 3] of an image: float32 [T, h, w, 2].

    Args:
        size: h, w of the crop.
        image: H, W of the image.
        warps: [T, h, w, 2] of `draw_warps`.
        shrink: the image is sampled after downscaling by this factor; blocks at an edge may be partial.
    """
    height, width = (math.ceil(side / shrink) * shrink for side in image)
    unit = torch.from_numpy(views * 2 / np.array([[width], [height]])).float()[..., None, None]  # [T, 2, 3, 1, 1]
    x, y = offsets(size)
    if warps is not None:
        x, y = x + warps[..., 0], y + warps[..., 1]  # [T, h, w]
    return torch.stack([a * x + (b * y + (c - 1)) for a, b, c in (row.unbind(1) for row in unit.unbind(1))], -1)


def resample(data: Tensor, grid: Tensor, padding: str = "reflection") -> Tensor:
    """Samples data [T or 1, C, H, W] at a grid [T, h, w, 2]: float32 [T, C, h, w].

    A `tv_tensors.Mask` is sampled at the nearest pixel, because ids cannot be interpolated; anything else bilinearly.
    """
    mode = "nearest" if isinstance(data, tv_tensors.Mask) else "bilinear"
    plain = data.as_subclass(Tensor).float().expand(len(grid), -1, -1, -1)
    return F.grid_sample(plain, grid, mode=mode, padding_mode=padding, align_corners=False)


def affordable_shrink(views: Matrix) -> int:
    """The largest of 1, 2, 4 and 8 by which an image can be downscaled without blurring any view [T, 2, 3]."""
    least = np.sqrt(np.abs(np.linalg.det(views[:, :, :2]))).min()
    return 1 << int(np.log2(np.clip(least, 1, MAX_SHRINK)))


def offsets(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Offsets of pixel centers from the center of the crop: x [1, w] and y [h, 1]."""
    height, width = size
    x, y = torch.arange(width) + (1 - width) / 2, torch.arange(height) + (1 - height) / 2
    return x[None], y[:, None]


def _matrices(rows: Sequence[Sequence[Numbers]]) -> Matrix:
    """Stacks rows of numbers, each [...], to matrices [..., rows, columns]."""
    return np.stack([np.stack(row, -1) for row in rows], -2)


@lru_cache(maxsize=8)
def _thin_plates(size: tuple[int, int]) -> Tensor:
    """The weight of each control point's displacement in that of each pixel: [h w, K], float32.

    The thin-plate spline through K points is linear in their displacements (Bookstein, 1989, equation 5), so its
    weights are computed once.
    """
    line = torch.linspace(-1, 1, CONTROL_POINTS, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)  # [K, 2]
    x, y = offsets(size)
    pixels = torch.cartesian_prod(y[:, 0] * 2 / size[0], x[0] * 2 / size[1]).flip(1).double()  # [h w, 2], in [-1, 1]
    count = len(points)
    affine = torch.cat([torch.ones(count, 1, dtype=torch.float64), points], 1)  # [K, 3]
    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count, :count] = _radial_basis(points, points)
    system[:count, count:] = affine
    system[count:, :count] = affine.T
    weights = torch.linalg.inv(system)[:, :count]  # [K + 3, K]
    basis = torch.cat([_radial_basis(pixels, points), torch.ones(len(pixels), 1, dtype=torch.float64), pixels], 1)
    plates: Tensor = basis @ weights
    return plates.float()


def _radial_basis(first: Tensor, second: Tensor) -> Tensor:
    """r^2 log r^2 for all distances r between two sets of points: [n, m]."""
    squared = (first[:, None] - second).square().sum(-1)
    basis: Tensor = torch.special.xlogy(squared, squared)
    return basis
