"""Padding of frames to a multiple of the stride."""

from torch import Tensor
from torch.nn import functional as F

Pads = tuple[int, int, int, int]  # left, right, top, bottom, in pixels


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, Pads]:
    """Pads the last two dimensions with zeros on both sides; an odd pixel is added at the right or bottom.

    Args:
        x: [..., H, W].
        multiple: height and width become multiples of this, in pixels.

    Returns:
        The padded tensor, or `x` itself if no padding is needed, and the pads for `unpad`.
    """
    height, width = x.shape[-2:]
    pads = (*_split(-width % multiple), *_split(-height % multiple))
    return F.pad(x, pads) if any(pads) else x, pads


def unpad(x: Tensor, pads: Pads) -> Tensor:
    """Removes the pads from [..., H, W]; returns a view."""
    left, right, top, bottom = pads
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _split(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2
