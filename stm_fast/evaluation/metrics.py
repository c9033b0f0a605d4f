"""The measures of the DAVIS benchmark (Perazzi et al., CVPR 2016, section 4; Pont-Tuset et al., 2017).

Region similarity J, contour accuracy F, and their statistics over a sequence, as in the official toolkit.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BOUND = 0.008  # the largest distance between matching contours, as a share of the image's diagonal
RECALL_THRESHOLD = 0.5
DECAY_BINS = 4

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class Statistics(NamedTuple):
    """The toolkit's statistics of a measure over the frames of an object."""

    mean: float
    recall: float  # share of frames above RECALL_THRESHOLD
    decay: float  # mean of the first quarter of the frames minus that of the last


def region_similarity(prediction: Masks, truth: Masks, void: Masks | None = None) -> Floats:
    """Region similarity J: intersection over union.

    Args:
        prediction, truth: ``[..., H, W]`` bool.
        void: ``[..., H, W]`` bool, pixels to ignore; broadcasts.

    Returns:
        ``[...]`` in [0, 1]; 1 if both masks are empty.

    Raises:
        ValueError: shapes that differ.
    """
    _check_shapes(prediction, truth)
    counted = np.True_ if void is None else ~void
    intersection = np.count_nonzero(prediction & truth & counted, axis=(-2, -1))  # [...]
    union = np.count_nonzero((prediction | truth) & counted, axis=(-2, -1))  # [...]
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))[()]


def contour_accuracy(prediction: Masks, truth: Masks, void: Masks | None = None, bound: float = BOUND) -> Floats:
    """Contour accuracy F: harmonic mean of precision and recall of the boundary pixels.

    A boundary pixel is correct if the other mask has one within ``ceil(bound * diagonal)`` pixels.

    Args:
        prediction, truth: ``[..., H, W]`` bool.
        void: ``[..., H, W]`` bool, pixels that count as background in both; broadcasts.
        bound: share of the diagonal; from 1 on, whole pixels.

    Returns:
        ``[...]`` in [0, 1]; 1 if neither mask has a boundary, 0 if only one does.

    Raises:
        ValueError: shapes that differ.
    """
    _check_shapes(prediction, truth)
    height, width = truth.shape[-2:]
    radius = int(bound) if bound >= 1 else math.ceil(bound * math.hypot(height, width))
    counted = np.True_ if void is None else ~void
    pairs = zip(
        (prediction & counted).reshape(-1, height, width), (truth & counted).reshape(-1, height, width), strict=True
    )
    scores = np.array([_contour_score(found, true, radius) for found, true in pairs])
    return scores.reshape(truth.shape[:-2])[()]


def statistics(per_frame: Floats) -> Statistics:
    """Mean, recall and decay of a measure over the frames of an object.

    The decay's four bins share their border frames, as in the toolkit. Unlike in the toolkit, frame numbers above 255
    do not wrap around.

    Args:
        per_frame: ``[T]``, without the first and the last frame of the sequence.

    Raises:
        ValueError: no frame.
    """
    if per_frame.size == 0:
        raise ValueError("statistics: found no frame, expected at least one")
    # numpy rounds half to even; the toolkit's small offset rounds it up
    borders = np.round(np.linspace(1, len(per_frame), DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = per_frame[: borders[1] + 1], per_frame[borders[-2] : borders[-1] + 1]
    recall = np.mean(per_frame > RECALL_THRESHOLD)
    return Statistics(float(per_frame.mean()), float(recall), float(first.mean() - last.mean()))


def boundary(mask: Masks) -> Masks:
    """The pixels of ``[H, W]`` that differ from their right, lower or lower right neighbor (Martin et al., 2004).

    The border is shifted half a pixel toward the origin. Pixels of the last row and column have one neighbor, the
    corner has none.
    """
    border = np.zeros_like(mask)  # [H, W]
    across = mask[:, :-1] != mask[:, 1:]  # [H, W - 1]
    down = mask[:-1] != mask[1:]  # [H - 1, W]
    border[:, :-1] = across
    border[:-1] |= down
    border[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return border


def _contour_score(prediction: Masks, truth: Masks, radius: int) -> float:
    found, true = boundary(prediction), boundary(truth)
    found_count, true_count = np.count_nonzero(found), np.count_nonzero(true)
    if found_count == 0 or true_count == 0:
        return float(found_count == true_count)
    window = _bounding_box(found | true)
    found, true = found[window], true[window]
    precision = _count_near(found, true, radius) / found_count
    recall = _count_near(true, found, radius) / true_count
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _count_near(points: Masks, others: Masks, radius: int) -> int:
    """The number of pixels of `points` within this radius of one of `others`. Exact, in integers."""
    height = points.shape[0]
    along_row = _distance_along_row(others)  # [H, W]
    y, x = np.nonzero(points)  # [P]
    near = np.zeros(len(y), np.bool_)
    for dy in range(-radius, radius + 1):
        half_chord = math.isqrt(radius * radius - dy * dy)
        inside = (y + dy >= 0) & (y + dy < height)
        near |= inside & (along_row[np.clip(y + dy, 0, height - 1), x] <= half_chord)
    return int(np.count_nonzero(near))


def _distance_along_row(mask: Masks) -> npt.NDArray[np.int32]:
    """The distance from each pixel of ``[H, W]`` to the nearest set one in its row; at least W if there is none."""
    width = mask.shape[1]
    columns = np.arange(width, dtype=np.int32)
    left = np.maximum.accumulate(np.where(mask, columns, -width), axis=1)
    right = np.minimum.accumulate(np.where(mask, columns, 2 * width)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(columns - left, right - columns).astype(np.int32)


def _bounding_box(mask: Masks) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _check_shapes(prediction: Masks, truth: Masks) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth: found shapes {prediction.shape} and {truth.shape}, expected the same")
