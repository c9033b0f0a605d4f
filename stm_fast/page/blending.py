"""Blends what tracking finds between two given masks of an object with what was found there before.

Tracked from the one, masks are best near it; tracked from the other, near that one. Each counts by its distance, as in
interactive segmentation by propagation (Oh et al., CVPR 2019). O objects, H x W the frames.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# by object, the frames in which it was given, in order
GivenFrames = Mapping[int, Sequence[int]]


def share(index: int, given: Sequence[int], *, back: bool) -> float:
    """How much a new result counts in a frame between two given masks of its object; 1 if it is not between two.

    Args:
        index: of the frame.
        given: the frames in which the object was given, in order.
        back: the new result was tracked from the later one.
    """
    before, after = bisect_right(given, index) - 1, bisect_left(given, index)
    if before < 0 or after == len(given) or before == after:
        return 1.0
    passed = (index - given[before]) / (given[after] - given[before])
    return passed if back else 1 - passed


def blended(
    prob: Tensor, ids: Sequence[int], before: Mapping[int, npt.NDArray[np.uint8]], shares: Sequence[float]
) -> Tensor:
    """New probabilities blended with earlier ones.

    Args:
        prob: ``[1 + O, H, W]``, sums to 1 over the channels.
        ids: of the channels after the background.
        before: the earlier probabilities ``[H, W]``, in 255ths, of some objects.
        shares: how much the new ones count, in [0, 1], for each of `ids`.

    Returns:
        As `prob`. Objects without earlier probabilities keep theirs, as far as the others leave room.
    """
    objects = prob[1:].clone()
    for plane, object_id, weight in zip(objects, ids, shares, strict=True):
        if object_id in before:
            earlier = torch.from_numpy(before[object_id]).to(prob.device) / 255
            plane.lerp_(earlier, 1 - weight)
    total = objects.sum(0)
    objects /= total.clamp(min=1)
    return torch.cat([(1 - total).clamp(min=0)[None], objects])
