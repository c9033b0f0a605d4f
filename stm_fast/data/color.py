"""Color augmentation of a clip, all linear about middle gray: one matrix and one offset per frame."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm_fast.data.augmentation import Augmentation

Matrix = npt.NDArray[np.float64]

_MIDDLE = 127.5
_TO_GRAY = np.tile([0.299, 0.587, 0.114], (3, 1))  # [3, 3], the luma of ITU-R BT.601
_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # cross product with the unit gray axis


def recolor(images: Tensor, augmentation: Augmentation, generator: np.random.Generator) -> Tensor:
    """Changes the colors of images [T, 3, H, W] in 0..255 at random; returns uint8."""
    clip, light = generator.uniform(-1, 1, 3), generator.uniform(-1, 1)
    gray = generator.random() < augmentation.grey
    frames, lights = generator.uniform(-1, 1, (len(images), 3)), generator.uniform(-1, 1, len(images))
    matrices, offsets = color_transforms(augmentation, clip, np.array(light), np.array(gray), frames, lights)
    return recolored(images, torch.from_numpy(matrices).float(), torch.from_numpy(offsets).float())


def color_transforms(
    augmentation: Augmentation, clip: Matrix, light: Matrix, gray: npt.NDArray[np.bool_], frames: Matrix, lights: Matrix
) -> tuple[Matrix, Matrix]:
    """Color transforms of the frames of a clip, or of several clips at once, for `recolored`.

    Args:
        clip: [..., 3], changes of contrast, saturation and hue, in [-1, 1] relative to their ranges.
        light: [...], change of brightness, likewise.
        gray: [...], whether a clip has no colors.
        frames, lights: [..., T, 3] and [..., T], further changes for each frame.

    Returns:
        Matrices [..., T, 3, 3] and offsets [..., T, 3].
    """
    weak = augmentation.frame_colour
    of_clip = _matrix(augmentation, clip)
    of_clip = np.where(gray[..., None, None], _TO_GRAY @ of_clip, of_clip)
    matrices = _matrix(augmentation, weak * frames) @ of_clip[..., None, :, :]  # [..., T, 3, 3]
    lighter = augmentation.brightness * _MIDDLE * (light[..., None] + weak * lights)  # [..., T]
    return matrices, lighter[..., None] + _MIDDLE - _MIDDLE * matrices.sum(-1)


def recolored(images: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Applies a matrix [N, 3, 3] and an offset [N, 3] to images [N, 3, H, W] in 0..255; returns uint8."""
    changed = torch.baddbmm(offsets[..., None] + 0.5, matrices, images.flatten(2))  # + 0.5 rounds
    return changed.clamp_(0, 255).to(torch.uint8).view(images.shape)


def _matrix(augmentation: Augmentation, changes: Matrix) -> Matrix:
    """Saturation, rotation about the gray axis (Rodrigues' formula), then contrast: [..., 3] to [..., 3, 3]."""
    contrast, saturation, hue = np.moveaxis(changes, -1, 0)[..., None, None]
    angle = np.radians(hue * augmentation.hue)
    turn = np.eye(3) + np.sin(angle) * _CROSS + (1 - np.cos(angle)) * (_CROSS @ _CROSS)
    vivid = _TO_GRAY + (1 + saturation * augmentation.saturation) * (np.eye(3) - _TO_GRAY)
    matrix: Matrix = (1 + contrast * augmentation.contrast) * turn @ vivid
    return matrix
