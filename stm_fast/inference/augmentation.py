"""Test-time augmentation: the mean prediction over several scales of a video, optionally also mirrored."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.inference.arrays import as_frame, as_ids, as_mask, in_unit_range, resized
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import impose, split_mask
from stm_fast.inference.options import RunOptions
from stm_fast.memory import Shard
from stm_fast.network import STM


@dataclass(frozen=True)
class _View:
    """A segmenter that sees the video scaled and perhaps mirrored."""

    segmenter: VideoSegmenter
    scale: float
    mirrored: bool

    def step(self, frame: Tensor, planes: Tensor | None, ids: list[int]) -> Tensor:
        """As `AugmentedSegmenter.step`, for this view alone."""
        size = (frame.shape[1], frame.shape[2])
        scaled = (max(round(size[0] * self.scale), 1), max(round(size[1] * self.scale), 1))
        view = self._mirror(_resized(frame, scaled))
        given = None if planes is None else self._mirror(_resized(planes, scaled))
        prob = self.segmenter.step(view, given, None if planes is None else ids)
        return _resized(self._mirror(prob), size)

    def _mirror(self, planes: Tensor) -> Tensor:
        return planes.flip(-1) if self.mirrored else planes


class AugmentedSegmenter:
    """One `VideoSegmenter` per scale, and with `flip` another for its mirror image; their probabilities are averaged.

    Each has its own memory. Given masks are kept exactly.

    Raises InputError if there is no scale or one that is not above 0, and as :class:`VideoSegmenter` does.
    """

    def __init__(self, model: STM, options: RunOptions) -> None:
        scales = options.scales
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise InputError(f"scales: found {list(scales)}, expected at least one, all above 0")
        self._weight = next(model.parameters())
        self._views = [
            _View(plain_segmenter(model, options), scale, mirrored)
            for scale, mirrored in product(scales, (False, True) if options.flip else (False,))
        ]

    @property
    def object_ids(self) -> list[int]:
        """The ids of the current objects, in the order of the probability channels."""
        return self._views[0].segmenter.object_ids

    @torch.inference_mode()
    def step(
        self,
        frame: "Tensor | np.ndarray[Any, Any]",
        mask: "Tensor | np.ndarray[Any, Any] | None" = None,
        objects: Iterable[int] | None = None,
    ) -> Tensor:
        """As :meth:`VideoSegmenter.step`: ``[1 + O, H, W]`` float32 probabilities on the model's device."""
        if len(self._views) == 1 and self._views[0].scale == 1:
            return self._views[0].segmenter.step(frame, mask, objects)
        pixels = in_unit_range(as_frame(frame, self._weight).to(self._weight.device))
        ids, planes = ([], None) if mask is None else self._given(mask, objects)
        prob = torch.stack([view.step(pixels, planes, ids) for view in self._views]).mean(0)  # [1 + O, H, W]
        return prob if planes is None else impose(prob, self.object_ids, ids, planes)

    def _given(self, mask: "Tensor | np.ndarray[Any, Any]", objects: Iterable[int] | None) -> tuple[list[int], Tensor]:
        given = None if objects is None else as_ids(objects, "objects")
        return split_mask(as_mask(mask, self._weight).to(self._weight.device), given)


def plain_segmenter(model: STM, options: RunOptions, shard: Shard | None = None) -> VideoSegmenter:
    """A `VideoSegmenter` without augmentation. Raises as :class:`VideoSegmenter` does."""
    return VideoSegmenter(
        model,
        memory=options.memory,
        max_size=options.max_size,
        min_size=options.min_size,
        backend=options.backend,
        shard=shard,
    )


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """As `resized`, without rounding errors beyond [0, 1]."""
    found = resized(planes, size)
    return found if found is planes else found.clamp(0, 1)
