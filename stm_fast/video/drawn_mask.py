"""Masks whose objects are drawn from the shapes of an annotation file, each time that they are read."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.boxes import MAX_ID
from stm_fast.errors import InputError
from stm_fast.listing import natural_key
from stm_fast.video.mask_image import MaskImage, resized
from stm_fast.video.mask_size import check_mask_size

Bools = npt.NDArray[np.bool_]
# the mask [H, W] of a shape
Draw = Callable[[], Bools]


class DrawnMask(NamedTuple):
    """The shapes of one frame.

    Attributes:
        label: names them in messages.
        size: W, H of the image that they were drawn on.
        shapes: of each object id; an object is the union of its shapes.
    """

    label: str
    size: tuple[int, int]
    shapes: dict[int, list[Draw]]

    def read(self, size: tuple[int, int]) -> MaskImage:
        """The mask for frames of W, H. Raises InputError if a shape is not valid, or as `check_mask_size` does."""
        check_mask_size(self.label, self.size, size)
        try:
            ids = paint({object_id: self._drawn(parts) for object_id, parts in self.shapes.items()}, self.size)
        except InputError as error:
            raise InputError(f"{self.label}: {error}") from None
        return resized(MaskImage(ids, None), size)

    def _drawn(self, parts: Sequence[Draw]) -> Draw:
        def draw() -> Bools:
            mask = parts[0]()
            for part in parts[1:]:
                mask = mask | part()
            return mask

        return draw


class Annotations(NamedTuple):
    """The content of annotation files.

    Attributes:
        masks: by frame, by name or, in a file that names no frames, by index.
        names: of the objects, by id.
        notes: how the content was interpreted.
    """

    masks: dict[str | int, DrawnMask]
    names: dict[int, str]
    notes: tuple[str, ...] = ()


def paint(objects: dict[int, Draw], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Ids [H, W] of objects, smaller ones over larger ones, for a size W, H.

    They are drawn twice, because all of them together could take much memory.
    """
    areas = {object_id: np.count_nonzero(draw()) for object_id, draw in objects.items()} if len(objects) > 1 else {}
    ids = np.zeros(size[::-1], np.uint8)
    for object_id in sorted(objects, key=lambda one: (-areas.get(one, 0), one)):
        ids[objects[object_id]()] = object_id
    return ids


def number_objects(keys: Iterable[Hashable], label: str) -> dict[Hashable, int]:
    """The ids of objects: keys that are all numbers from 1 to 255, or else 1, 2, ... in the natural order of the keys.

    Raises InputError, which starts with `label`, for more than 255 objects.
    """
    found = set(keys)
    if all(str(key).isascii() and str(key).isdecimal() and 1 <= int(str(key)[:4]) <= MAX_ID for key in found):
        numbers = {key: int(str(key)) for key in found}
        if len(set(numbers.values())) == len(numbers):
            return numbers
    if len(found) > MAX_ID:
        raise InputError(f"{label}: found {len(found)} objects, expected at most {MAX_ID}")
    ordered = sorted(found, key=lambda key: natural_key(str(key)))
    return {key: number for number, key in enumerate(ordered, start=1)}
