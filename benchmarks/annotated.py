"""Annotated sequences of folders like DAVIS: JPEGImages/<size>/<name> and Annotations/<size>/<name>."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.listing import list_folders, list_images, list_masks
from stm_fast.video import VOID, object_ids, read_mask


class Sequence(NamedTuple):
    """A sequence; `masks` has the annotation of each of the frames that have one, by index."""

    name: str
    frames: list[Path]
    masks: dict[int, Path]

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """The annotation of a frame, ids [H, W]; a lone 255 is object 1."""
        ids = read_mask(self.masks[index]).ids
        return np.where(ids == VOID, np.uint8(1), ids) if object_ids(ids) == [VOID] else ids

    def backward(self) -> "Sequence":
        """The same, played backward."""
        last = len(self.frames) - 1
        return Sequence(self.name, self.frames[::-1], {last - index: mask for index, mask in self.masks.items()})


def sequences(root: Path, names: Collection[str] = ()) -> Iterator[Sequence]:
    """The sequences whose first frame has an annotation; of all, or of these names."""
    for size in list_folders(root / "Annotations"):
        for folder in list_folders(size):
            frames = list_images(root / "JPEGImages" / size.name / folder.name)
            index = {frame.stem: position for position, frame in enumerate(frames)}
            masks = {index[mask.stem]: mask for mask in list_masks(folder) if mask.stem in index}
            if 0 in masks and (not names or folder.name in names):
                yield Sequence(folder.name, frames, masks)
