"""Frames, masks and ids as users have them, from NumPy too, as the engine takes them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stm_fast.arguments import integer
from stm_fast.errors import InputError
from stm_fast.ops.arguments import check_tensors
from stm_fast.torch_private import is_fake

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_frame(found: Any, like: Tensor) -> Tensor:
    """A frame ``[3, H, W]``, uint8 or float.

    Args:
        found: a tensor or an array of NumPy, whose memory it then shares where it can.
        like: a weight of the model.

    Raises InputError: another shape. TypeError: anything else, or another dtype.
    """
    frame = _as_tensor(found, "frame", like)
    if frame.ndim != 3 or frame.shape[0] != 3 or not frame.numel():
        hint = "; permute(2, 0, 1) of a tensor, transpose(2, 0, 1) of an array, makes it so"
        channels_last = frame.ndim == 3 and frame.shape[2] == 3
        raise InputError(f"frame: found shape {tuple(frame.shape)}, expected [3, H, W]{hint if channels_last else ''}")
    if frame.dtype not in (torch.uint8, *_FLOATS):
        raise TypeError(f"frame: found {frame.dtype}, expected uint8, or float in [0, 1]")
    return frame


def as_mask(found: Any, like: Tensor) -> Tensor:
    """A mask ``[H, W]`` or ``[O, H, W]``, in a dtype whose values torch can look for. Raises as `as_frame` does."""
    mask = _as_tensor(found, "mask", like)
    if mask.ndim not in (2, 3):
        raise InputError(f"mask: found shape {tuple(mask.shape)}, expected [H, W] or [O, H, W]")
    unknown_float = mask.is_floating_point() and mask.dtype not in _FLOATS
    if unknown_float or mask.is_complex() or mask.is_quantized:
        raise TypeError(f"mask: found {mask.dtype}, expected integers, bool or float in [0, 1]")
    return mask.to(torch.int64) if mask.dtype in (torch.uint16, torch.uint32, torch.uint64) else mask


def as_ids(found: Any, name: str) -> list[int]:
    """Ids of objects, integers in any container. Raises TypeError, which begins with `name`, for anything else."""
    if isinstance(found, str | bytes) or not isinstance(found, Iterable) or getattr(found, "ndim", 1) != 1:
        raise TypeError(f"{name}: found {type(found).__name__}, expected integers, as in [1, 2]")
    return [integer(one, name, "integers") for one in found]


def _as_tensor(found: Any, name: str, like: Tensor) -> Tensor:
    """A tensor as it is, an array of NumPy as one."""
    if isinstance(found, np.ndarray):
        return torch.from_numpy(_plain(found, name))
    if not isinstance(found, Tensor):
        raise TypeError(f"{name}: found {type(found).__name__}, expected a tensor or an array of NumPy")
    check_tensors(**{name: found})
    if _holds_nothing(found) and not _holds_nothing(like):
        raise TypeError(f"{name}: found a fake tensor or one on meta, expected one with values")
    return found


def _holds_nothing(tensor: Tensor) -> bool:
    return tensor.is_meta or is_fake(tensor)


def _plain(array: "np.ndarray[Any, Any]", name: str) -> "np.ndarray[Any, Any]":
    """The array, or a copy of it that torch takes."""
    if array.dtype.kind not in "biufc" or isinstance(array, np.ma.MaskedArray):
        kind = "a masked array" if isinstance(array, np.ma.MaskedArray) else f"an array of {array.dtype}"
        raise TypeError(f"{name}: found {kind}, expected an array of numbers")
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    walks = all(stride >= 0 and stride % dtype.itemsize == 0 for stride in array.strides)
    # torch warns of memory that must not be written
    if array.dtype == dtype and array.dtype.isnative and walks and array.flags.aligned and array.flags.writeable:
        return array
    return np.array(array, dtype)
