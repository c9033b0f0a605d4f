"""Colour changes of a clip: all of them linear about middle grey, so one matrix and one offset a frame."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm_fast.data.augmentation import Augmentation

Matrix = npt.NDArray[np.float64]

_MIDDLE = 127.5
_TO_GREY = np.tile([0.299, 0.587, 0.114], (3, 1))  # [3, 3], the luma of ITU-R BT.601
_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # cross product with the unit grey axis


def recolour(images: Tensor, augmentation: Augmentation, generator: np.random.Generator) -> Tensor:
    """Images [T, 3, H, W] in 0..255 with other colours, as uint8."""
    clip, light = _draw_matrix(augmentation, 1.0, generator), _draw_light(augmentation, 1.0, generator)
    if generator.random() < augmentation.grey:
        clip = _TO_GREY @ clip
    weak = augmentation.frame_colour
    matrices = np.stack([_draw_matrix(augmentation, weak, generator) @ clip for _ in images])  # [T, 3, 3]
    lights = np.stack([light + _draw_light(augmentation, weak, generator) for _ in images])  # [T]
    offsets = lights[:, None] + _MIDDLE - _MIDDLE * matrices.sum(-1) + 0.5  # [T, 3], the half rounds
    changed = torch.baddbmm(_float(offsets)[..., None], _float(matrices), images.flatten(2))
    return changed.clamp_(0, 255).to(torch.uint8).view(images.shape)


def _draw_light(augmentation: Augmentation, strength: float, generator: np.random.Generator) -> float:
    return strength * augmentation.brightness * _MIDDLE * generator.uniform(-1, 1)


def _draw_matrix(augmentation: Augmentation, strength: float, generator: np.random.Generator) -> Matrix:
    """Saturation, then a turn round the grey axis (Rodrigues' formula), then contrast: [3, 3]."""
    contrast, saturation, hue = strength * generator.uniform(-1, 1, 3)
    angle = math.radians(hue * augmentation.hue)
    turn = np.eye(3) + math.sin(angle) * _CROSS + (1 - math.cos(angle)) * _CROSS @ _CROSS
    vivid = _TO_GREY + (1 + saturation * augmentation.saturation) * (np.eye(3) - _TO_GREY)
    matrix: Matrix = (1 + contrast * augmentation.contrast) * turn @ vivid
    return matrix


def _float(numbers: Matrix) -> Tensor:
    return torch.from_numpy(numbers).float()
