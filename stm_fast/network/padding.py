"""Frames of any size for a network of stride 16."""

from torch import Tensor
from torch.nn import functional as F

Pads = tuple[int, int, int, int]  # left, right, top, bottom, in pixels


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, Pads]:
    """Pads the last two dimensions with zeros on both sides, the odd pixel at the right and at the bottom.

    Args:
        x: [..., H, W].
        multiple: height and width become multiples of this, in pixels.

    Returns:
        The padded tensor, or `x` where nothing is missing, and the pads that `unpad` takes off again.
    """
    height, width = x.shape[-2:]
    pads = (*_split(-width % multiple), *_split(-height % multiple))
    return F.pad(x, pads) if any(pads) else x, pads


def unpad(x: Tensor, pads: Pads) -> Tensor:
    """Takes the pads off [..., H, W]: a view."""
    left, right, top, bottom = pads
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _split(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2
