"""Training clips: drawn from a mixture of sources, augmented, and collated to batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stm_fast.data.augmentation import Augmentation
from stm_fast.data.compose import compose, objects_of
from stm_fast.data.source import ClipSource, draw_frames
from stm_fast.errors import InputError

TRIES = 50

_log = logging.getLogger(__name__)


class TrainingClip(NamedTuple):
    """A few frames of a video, or of a still image set in motion.

    Attributes:
        frames: uint8 [T, 3, H, W], RGB.
        ids: uint8 [T, H, W], 0 is background, 1..O the objects; all of them are in the first frame.
        objects: O, at least 1.
        name: the file of the first frame, or the seed and time of a synthetic one.
        faults: messages about the corrupt items that were skipped before this clip.
    """

    frames: Tensor
    ids: Tensor
    objects: int
    name: str
    faults: tuple[str, ...] = ()


class ClipBatch(NamedTuple):
    """Clips of one size.

    Attributes:
        frames: uint8 [B, T, 3, H, W], RGB.
        ids: uint8 [B, T, H, W], 0 is background, 1..objects[b] the objects.
        objects: of each clip.
        names: of each clip.
        faults: a message about each corrupt item that was skipped.
    """

    frames: Tensor
    ids: Tensor
    objects: list[int]
    names: list[str]
    faults: list[str]


@dataclass(frozen=True)
class SampleKey:
    """Selects an item of a `ClipDataset`; together with the data set's seed, it determines the item.

    Attributes:
        epoch, index: which item, both from 0.
        max_skip: the most frames skipped between two frames of a video.
    """

    epoch: int
    index: int
    max_skip: int


class ClipDataset(Dataset[TrainingClip]):
    """A mixture of sources. `dataset[SampleKey(epoch, index, max_skip)]` depends on the seed and the key alone.

    Args:
        sources: pairs of a source and its weight: how often it is drawn from, relative to the others.
        length: clips per epoch.
        frames: frames per clip, T.
        size: H, W of a clip.
        max_objects: the most objects in a clip; if there are more, this many are drawn and the rest is background.
        augmentation: random changes. Objects to paste are drawn from the sources of still images.
        seed: of all random numbers.
        skip_corrupt: whether to skip unusable files and videos that are too short; each one is logged as a warning
            and counted.

    Raises:
        InputError: no source with a positive weight, or a video that is too short; when an item is drawn, a corrupt
            file, or no clip with an object.
    """

    def __init__(
        self,
        sources: Sequence[tuple[ClipSource, float]],
        *,
        length: int,
        frames: int,
        size: tuple[int, int],
        max_objects: int,
        augmentation: Augmentation,
        seed: int,
        skip_corrupt: bool,
    ) -> None:
        weights = np.array([weight for _, weight in sources], np.float64)
        if not len(weights) or weights.min() < 0 or not weights.sum() > 0:
            raise InputError(f"data: weights {weights.tolist()}, expected some that are positive, none negative")
        self._sources = [source for source, _ in sources]
        for source in () if skip_corrupt else self._sources:
            source.check_length(frames)
        self._image_sources = [number for number, source in enumerate(self._sources) if not source.moving]
        self._shares = weights / weights.sum()
        self._length, self._frames, self._size, self._max_objects = length, frames, size, max_objects
        self._augmentation, self._seed, self._skip_corrupt = augmentation, seed, skip_corrupt

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: SampleKey) -> TrainingClip:
        generator = np.random.default_rng((self._seed, key.epoch, key.index))
        faults: list[str] = []
        for _ in range(TRIES):
            try:
                clip = self._draw(key.max_skip, generator)
            except InputError as error:
                if not self._skip_corrupt:
                    raise
                _log.warning("skipped: %s", error)
                faults.append(str(error))
            else:
                if clip is not None:
                    return clip._replace(faults=tuple(faults))
        last = f", the last fault: {faults[-1]}" if faults else ""
        raise InputError(f"data: {TRIES} clips drawn and none can be used, expected objects in them{last}")

    def _draw(self, max_skip: int, generator: np.random.Generator) -> TrainingClip | None:
        """A clip, or None where no object is large enough in its first frame."""
        augmentation = self._augmentation
        source = self._sources[generator.choice(len(self._sources), p=self._shares)]
        drawn = draw_frames(source, int(generator.integers(len(source))), self._frames, max_skip, generator)
        if source.moving and generator.random() < augmentation.reverse:
            drawn.reverse()
        images = [self._sources[number] for number in self._draw_pasted_sources(source.moving, generator)]
        pasted = [draw_frames(image, int(generator.integers(len(image))), 1, 0, generator)[0] for image in images]
        frames, ids = compose(drawn, source.moving, pasted, self._size, augmentation, generator)
        found = objects_of(ids[0], augmentation.min_area)
        if not found:
            return None
        chosen: list[int] = generator.permutation(found)[: self._max_objects].tolist()
        return TrainingClip(frames, renumbered(ids, chosen), len(chosen), drawn[0].name)

    def _draw_pasted_sources(self, moving: bool, generator: np.random.Generator) -> list[int]:
        """Source numbers, one for each still image of which an object is pasted over a clip."""
        chance = self._augmentation.video_paste if moving else self._augmentation.paste
        if not self._image_sources or generator.random() >= chance:
            return []
        count = generator.integers(1, self._augmentation.paste_most + 1)
        return [self._image_sources[generator.integers(len(self._image_sources))] for _ in range(count)]


def renumbered(ids: Tensor, chosen: Sequence[int]) -> Tensor:
    """Ids with the chosen objects renumbered 1, 2, ... in their order, and everything else as background."""
    table = torch.zeros(256, dtype=torch.uint8)
    table[chosen] = torch.arange(1, len(chosen) + 1, dtype=torch.uint8)
    return table[ids.long()]


def collate(clips: list[TrainingClip]) -> ClipBatch:
    """Clips of one size and length as a batch, for a `DataLoader`."""
    frames, ids, objects, names, faults = zip(*clips, strict=True)
    return ClipBatch(torch.stack(frames), torch.stack(ids), list(objects), list(names), list(chain(*faults)))
