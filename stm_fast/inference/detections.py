"""Segmented objects as detections of the supervision package, which draws, filters and writes them."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.versions import how_to_install

if TYPE_CHECKING:
    import supervision


def detections(mask: Tensor, scores: Tensor, ids: Sequence[int]) -> "supervision.Detections":
    """The objects that have pixels.

    Args:
        mask: ``[H, W]`` object ids.
        scores: ``[O]`` float32, the confidence in each object.
        ids: of these objects.

    Raises:
        InputError: supervision is not installed.
    """
    try:
        supervision = importlib.import_module("supervision")
    except ImportError as error:
        needed = "detections need the package supervision, which cannot be imported"
        raise InputError(f"{needed} ({error}): {how_to_install('supervision')}") from error
    pixels, known = mask.cpu().numpy(), np.array(ids, np.int64)
    planes = pixels == known[:, None, None]  # [O, H, W]
    visible = planes.any((1, 2))
    return supervision.Detections(  # type: ignore[no-any-return]
        xyxy=supervision.mask_to_xyxy(planes[visible]).astype(np.float32),
        mask=planes[visible],
        confidence=scores.cpu().numpy()[visible],
        class_id=known[visible],
        tracker_id=known[visible],
    )
