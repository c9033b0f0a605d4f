"""The masks of boxes: made once, before a run, from the frames that the boxes are in."""

import zlib
from collections.abc import Collection, Mapping
from itertools import count
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.boxes import MAX_ID, Boxes, BoxPrompt
from stm_fast.clicks.prompter import ClickPrompter
from stm_fast.clicks.regions import Region
from stm_fast.errors import InputError, option
from stm_fast.runs.frame_names import index_of
from stm_fast.video import Frame, FrameReader, object_ids
from stm_fast.video.drawn_mask import Bools, paint
from stm_fast.video.first_mask import check_box

Ids = npt.NDArray[np.uint8]
# by frame index and object id
Placed = dict[int, dict[int, BoxPrompt]]


class BoxMasks(NamedTuple):
    """Masks by the index of their frame, compressed, because there may be thousands.

    Attributes:
        packed: the ids of each frame.
        shape: H, W of the frames.
        notes: on boxes in which no object was found.
    """

    packed: Mapping[int, bytes] = MappingProxyType({})
    shape: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    def read(self, index: int) -> Ids | None:
        """The mask of a frame, ids [H, W]; None if it has no box."""
        if index not in self.packed:
            return None
        return np.frombuffer(zlib.decompress(self.packed[index]), np.uint8).reshape(self.shape).copy()


NO_MASKS = BoxMasks()


def place_boxes(boxes: Boxes, reader: FrameReader, first: int, masks: Mapping[int, Collection[int]]) -> Placed:
    """The frame and the object of each box. New objects get the smallest ids that no mask and no other box has.

    Args:
        first: the frame of boxes that name none.
        masks: the objects of the masks, by frame.

    Raises:
        InputError: no such frame, a box outside it, two boxes or a box and a mask of one object in a frame, or more
            than 255 objects.
    """
    numbered = (one.object_id for one in boxes.prompts if one.object_id is not None)
    taken = {*numbered, *(object_id for several in masks.values() for object_id in several)}
    free = (number for number in count(1) if number not in taken)
    placed: Placed = {}
    for prompt in boxes.prompts:
        index = first if prompt.frame is None else index_of(prompt.frame, reader, prompt.label)
        object_id = next(free) if prompt.object_id is None else prompt.object_id
        if object_id > MAX_ID:
            raise InputError(f"{prompt.label}: found more than {MAX_ID} objects, expected at most {MAX_ID}")
        of_frame = placed.setdefault(index, {})
        if object_id in of_frame or object_id in masks.get(index, ()):
            other = "box" if object_id in of_frame else "mask"
            raise InputError(f"{prompt.label}: found a {other} of object {object_id} in the same frame, expected one")
        try:
            check_box(prompt.box, (reader.width, reader.height))
        except InputError as error:
            raise InputError(f"{prompt.label}: {error}") from None
        of_frame[object_id] = prompt
    return placed


def make_masks(placed: Placed, reader: FrameReader) -> BoxMasks:
    """The masks of boxes. The video is read up to the last frame with one.

    Raises InputError if OpenCV is missing, a frame cannot be read, the video ends before it, or it is not the first one
    of a live source, which can be read only once.
    """
    prompter = ClickPrompter.load(device="cpu")
    if reader.live and max(placed) > 0:
        raise InputError(f"{option('boxes')}: found one in frame {max(placed)}, expected frame 0 of a live source")
    packed: dict[int, bytes] = {}
    notes: list[str] = []
    for frame in reader:
        if frame.index in placed:
            packed[frame.index] = zlib.compress(_mask_of(frame, placed[frame.index], prompter, notes).tobytes(), 1)
        if frame.index >= max(placed):
            break
    for index in sorted(set(placed) - set(packed)):
        label = next(iter(placed[index].values())).label
        raise InputError(f"{label}: no frame {index} for this box, the video ended before it")
    return BoxMasks(packed, (reader.height, reader.width), tuple(notes))


def _mask_of(frame: Frame, prompts: Mapping[int, BoxPrompt], prompter: ClickPrompter, notes: list[str]) -> Ids:
    """The ids [H, W] of the objects in boxes of one frame."""
    masks: dict[int, Bools] = {}
    for object_id, prompt in prompts.items():
        masks[object_id], found = prompter.from_region(frame.image, Region(prompt.box))
        if not found:
            notes.append(f"{prompt.label}: found no object, took the ellipse in the box")
    ids = paint({object_id: mask.view for object_id, mask in masks.items()}, frame.image.shape[1::-1])
    for hidden in set(prompts) - set(object_ids(ids)):
        raise InputError(f"{prompts[hidden].label}: object {hidden} is covered by those of other boxes")
    return ids
