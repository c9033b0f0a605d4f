"""The loop over the frames of a video: whatever is segmented, scored or timed goes through it."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm_fast.inference.objects import label, object_scores
from stm_fast.video import Frame

Ids = npt.NDArray[np.uint8]  # [H, W]
# the mask that is given with a frame, and the ids in it that count (None for all); None for a frame without a mask. The
# arguments are the frame and the ids of the objects that exist
Prompts = Callable[[Frame, list[int]], tuple[Ids, list[int] | None] | None]


class Segmenter(Protocol):
    """Segments one frame after the other, as :class:`stm_fast.inference.VideoSegmenter` does."""

    @property
    def object_ids(self) -> list[int]: ...

    def step(self, frame: Tensor, mask: Tensor | None = None, objects: list[int] | None = None) -> Tensor: ...


class Segmented(NamedTuple):
    """A frame and its mask."""

    frame: Frame
    ids: Ids | None  # [H, W]; None where an earlier process has written the mask
    scores: dict[int, float]  # of each object that exists, where they are asked for


def run(
    frames: Iterable[Frame],
    prompts: Prompts,
    segmenter: Segmenter,
    put: Callable[[Segmented], None],
    *,
    first: int = 0,
    with_scores: bool = False,
    measure: Callable[[], AbstractContextManager[object]] = nullcontext,
    after: Callable[[int], None] = lambda done: None,
) -> int:
    """Segments frames as they come; none is kept.

    Args:
        frames: of one video, in order.
        prompts: the masks that are given.
        segmenter: at frame `first`.
        put: takes each frame with its mask.
        first: the frames before it are done: they are handed on without a mask.
        with_scores: how sure the network is of each object, see `object_scores`.
        measure: a context around the work on each frame, from pixels and masks in memory to ids in memory.
        after: called after each frame with how many are done.

    Returns:
        How many frames there were.
    """
    done = 0
    for frame in frames:
        if frame.index < first:
            put(Segmented(frame, None, {}))
        else:
            mask, objects = prompts(frame, segmenter.object_ids) or (None, None)
            with measure():
                picture = torch.from_numpy(frame.image).permute(2, 0, 1)  # [3, H, W]
                prob = segmenter.step(picture, None if mask is None else torch.from_numpy(mask), objects)
                segmented = _segmented(frame, prob, segmenter.object_ids, with_scores)
            put(segmented)
        done = frame.index + 1
        after(done)
    return done


def _segmented(frame: Frame, prob: Tensor, object_ids: list[int], with_scores: bool) -> Segmented:
    found = label(prob, object_ids)
    scores = object_scores(prob, found, object_ids).tolist() if with_scores else None
    return Segmented(frame, found.cpu().numpy(), dict(zip(object_ids, scores, strict=True)) if scores else {})
