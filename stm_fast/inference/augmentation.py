"""Test-time augmentation: the same video at several sizes and mirrored, and the mean of what is seen."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stm_fast.errors import InputError
from stm_fast.inference.arrays import as_frame, as_ids, as_mask
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import impose, split_mask
from stm_fast.inference.options import RunOptions
from stm_fast.memory import Shard
from stm_fast.network import STM


@dataclass(frozen=True)
class _View:
    """One way to look at a video."""

    segmenter: VideoSegmenter
    scale: float
    mirrored: bool

    def step(self, frame: Tensor, planes: Tensor | None, ids: list[int]) -> Tensor:
        """As `AugmentedSegmenter.step`, seen this way."""
        size = (frame.shape[1], frame.shape[2])
        scaled = (max(round(size[0] * self.scale), 1), max(round(size[1] * self.scale), 1))
        view = self._mirror(_resized(frame, scaled))
        given = None if planes is None else self._mirror(_resized(planes, scaled))
        prob = self.segmenter.step(view, given, None if planes is None else ids)
        return _resized(self._mirror(prob), size)

    def _mirror(self, planes: Tensor) -> Tensor:
        return planes.flip(-1) if self.mirrored else planes


class AugmentedSegmenter:
    """A `VideoSegmenter` for each scale, straight and perhaps mirrored; their probabilities are averaged.

    Each remembers what it saw itself. Given masks are right in the outcome, to the pixel.

    Raises InputError: no scale, or one that is not above 0; and as :class:`VideoSegmenter` does.
    """

    def __init__(self, model: STM, options: RunOptions) -> None:
        scales = options.scales
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise InputError(f"scales: found {list(scales)}, expected one at least, all above 0")
        self._weight = next(model.parameters())
        self._views = [
            _View(plain_segmenter(model, options), scale, mirrored)
            for scale, mirrored in product(scales, (False, True) if options.flip else (False,))
        ]

    @property
    def object_ids(self) -> list[int]:
        """The ids of the objects that exist, in the order of the probabilities' channels."""
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
        taken = as_frame(frame, self._weight).to(self._weight.device)
        pixels = taken if taken.is_floating_point() else taken.float() / 255
        ids, planes = ([], None) if mask is None else self._given(mask, objects)
        prob = torch.stack([view.step(pixels, planes, ids) for view in self._views]).mean(0)  # [1 + O, H, W]
        return prob if planes is None else impose(prob, self.object_ids, ids, planes)

    def _given(self, mask: "Tensor | np.ndarray[Any, Any]", objects: Iterable[int] | None) -> tuple[list[int], Tensor]:
        given = None if objects is None else as_ids(objects, "objects")
        return split_mask(as_mask(mask, self._weight).to(self._weight.device), given)


def plain_segmenter(model: STM, options: RunOptions, shard: Shard | None = None) -> VideoSegmenter:
    """Without augmentation. Raises as :class:`VideoSegmenter` does."""
    return VideoSegmenter(
        model,
        memory=options.memory,
        max_size=options.max_size,
        min_size=options.min_size,
        backend=options.backend,
        shard=shard,
    )


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """``[C, H, W]`` at another size; itself where it has that size already."""
    if tuple(planes.shape[1:]) == size:
        return planes
    resized = interpolate(planes[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return resized.clamp(0, 1)
