"""Tracking from any frame in either direction, with masks that were given for some frames, behind and ahead.

O objects, H x W the frames of the video.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import impose, split_mask
from stm_fast.runs.loop import FRAMES_WAITING, as_tensor, prefetch
from stm_fast.video import Frame

Masks = dict[int, Tensor]  # by id, bool [H, W]


class Tracked(NamedTuple):
    """The result for a frame."""

    frame: Frame
    prob: Tensor  # [1 + O, H, W], sums to 1 over the channels; those after the background are of `ids`
    ids: list[int]
    given: Masks  # those that the user gave for this frame


def nearest_last(indices: Iterable[int], start: int) -> list[int]:
    """Frames in the order in which they are memorized before `start`: the last one acts as the previous frame."""
    return sorted(indices, key=lambda index: (-abs(index - start), index))


def track(
    segmenter: VideoSegmenter, given: Callable[[int], Masks], frames: Iterable[Frame], start: int | None = None
) -> Generator[Tracked, None, None]:
    """Segments frames one by one. Where masks are given, they are the result.

    Args:
        segmenter: it has memorized all frames with given masks, except `start`.
        given: from the index of a frame to the masks given for it.
        frames: in either direction; a thread decodes them ahead of time.
        start: the frame whose masks are memorized when it comes.
    """
    with closing(prefetch(frames, FRAMES_WAITING)) as decoded:
        for frame in decoded:
            masks = given(frame.index)
            if frame.index == start:
                prob = step(segmenter, frame, masks)
            else:  # the masks of later frames are in the memory already
                prob = _imposed(step(segmenter, frame), segmenter.object_ids, masks)
            yield Tracked(frame, prob, segmenter.object_ids, masks)


def step(segmenter: VideoSegmenter, frame: Frame, masks: Masks | None = None) -> Tensor:
    """Segments a frame, for which masks may be given: probabilities ``[1 + O, H, W]``."""
    planes, ids = (torch.stack([*masks.values()]), [*masks]) if masks else (None, None)
    return segmenter.step(as_tensor(frame), planes, ids)


def _imposed(prob: Tensor, known: list[int], masks: Masks) -> Tensor:
    """The probabilities with given masks in place of those of their objects."""
    if not masks:
        return prob
    given, planes = split_mask(torch.stack([*masks.values()]).to(prob.device), [*masks])
    return impose(prob, known, given, planes)
