"""Checks frames, masks and ids from users, and converts NumPy arrays to tensors."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stm_fast.arguments import integer
from stm_fast.errors import InputError
from stm_fast.ops.arguments import check_tensors
from stm_fast.torch_private import is_fake

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_frame(found: Any, like: Tensor) -> Tensor:
    """A frame ``[3, H, W]``, uint8 or float.

    Args:
        found: a tensor, or a NumPy array, with which the frame shares memory if possible.
        like: a weight of the model.

    Raises:
        InputError: a wrong shape.
        TypeError: a wrong type or dtype.
    """
    frame = _as_tensor(found, "frame", like)
    if frame.ndim != 3 or frame.shape[0] != 3 or not frame.numel():
        hint = "; use permute(2, 0, 1) for a tensor, transpose(2, 0, 1) for an array"
        channels_last = frame.ndim == 3 and frame.shape[2] == 3
        raise InputError(f"frame: found shape {tuple(frame.shape)}, expected [3, H, W]{hint if channels_last else ''}")
    if frame.dtype not in (torch.uint8, *_FLOATS):
        raise TypeError(f"frame: found {frame.dtype}, expected uint8, or float in [0, 1]")
    return frame


def as_mask(found: Any, like: Tensor) -> Tensor:
    """A mask ``[H, W]`` or ``[O, H, W]``, in a dtype that torch can compare. Raises as `as_frame` does."""
    mask = _as_tensor(found, "mask", like)
    if mask.ndim not in (2, 3):
        raise InputError(f"mask: found shape {tuple(mask.shape)}, expected [H, W] or [O, H, W]")
    unknown_float = mask.is_floating_point() and mask.dtype not in _FLOATS
    if unknown_float or mask.is_complex() or mask.is_quantized:
        raise TypeError(f"mask: found {mask.dtype}, expected integers, bool or float in [0, 1]")
    return mask.to(torch.int64) if mask.dtype in (torch.uint16, torch.uint32, torch.uint64) else mask


def as_ids(found: Any, name: str) -> list[int]:
    """Object ids from any iterable of integers. Raises TypeError, which begins with `name`, for anything else."""
    if isinstance(found, str | bytes) or not isinstance(found, Iterable) or getattr(found, "ndim", 1) != 1:
        raise TypeError(f"{name}: found {type(found).__name__}, expected integers, as in [1, 2]")
    return [integer(one, name, "integers") for one in found]


def in_unit_range(frame: Tensor) -> Tensor:
    """The frame in [0, 1], in a dtype that `resized` supports."""
    if frame.dtype == torch.uint8:
        return frame.float().div_(255)
    return frame.float() if frame.dtype in (torch.float16, torch.bfloat16) else frame


def resized(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    """``[C, ...]`` at another size; `planes` itself if it has that size already."""
    if tuple(planes.shape[1:]) == size:
        return planes
    return interpolate(planes[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def in_pixels(size: tuple[int, ...]) -> str:
    """H, W as text for a message, as in 854x480."""
    return "x".join(map(str, reversed(size)))


def _as_tensor(found: Any, name: str, like: Tensor) -> Tensor:
    """A tensor unchanged; a NumPy array as a tensor."""
    if isinstance(found, np.ndarray):
        return torch.from_numpy(_plain(found, name))
    if not isinstance(found, Tensor):
        raise TypeError(f"{name}: found {type(found).__name__}, expected a tensor or a NumPy array")
    check_tensors(**{name: found})
    if _has_no_values(found) and not _has_no_values(like):
        raise TypeError(f"{name}: found a fake tensor or one on meta, expected one with values")
    return found


def _has_no_values(tensor: Tensor) -> bool:
    return tensor.is_meta or is_fake(tensor)


def _plain(array: "np.ndarray[Any, Any]", name: str) -> "np.ndarray[Any, Any]":
    """The array, or a copy of it that torch accepts."""
    if array.dtype.kind not in "biufc" or isinstance(array, np.ma.MaskedArray):
        kind = "a masked array" if isinstance(array, np.ma.MaskedArray) else f"an array of {array.dtype}"
        raise TypeError(f"{name}: found {kind}, expected an array of numbers")
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    regular = all(stride >= 0 and stride % dtype.itemsize == 0 for stride in array.strides)
    # torch warns about read-only memory
    if array.dtype == dtype and array.dtype.isnative and regular and array.flags.aligned and array.flags.writeable:
        return array
    return np.array(array, dtype)
