"""The masks and boxes that a user gives: which frame each belongs to. All are checked before anything is computed."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.boxes import NO_BOXES, Boxes
from stm_fast.errors import InputError, Message, option
from stm_fast.runs.box_masks import NO_MASKS, BoxMasks, make_masks, place_boxes
from stm_fast.runs.frame_names import index_by_name, index_of
from stm_fast.runs.mask_sources import FoundMasks, MaskSource, find_masks
from stm_fast.video import (
    VOID,
    VOID_NOTE,
    Frame,
    FrameReader,
    has_void,
    object_ids,
    require_objects,
    write_mask,
)
from stm_fast.whole_file import make_folder

__all__ = ["GivenMasks", "find_masks", "match_masks"]

# the object of masks that are black and white only
_LONE = 1

Ids = npt.NDArray[np.uint8]


class GivenMasks(NamedTuple):
    """Masks by the index of their frame.

    Attributes:
        masks: those that are read when their frame comes.
        size: W, H of the frames.
        ids: the objects of each frame that has a mask or a box.
        white: what 255 in an image is: itself, an object; 0, because it is void; or 1, the object of masks that are
            black and white.
        boxed: the masks that were made of boxes.
        palette: the colors of the first mask; None if it has none.
        notes: how ambiguous input was interpreted, one line each.
        digest: SHA-256 of all masks and their frames.
        names: of objects, by id, as far as they were given.
    """

    masks: dict[int, MaskSource]
    size: tuple[int, int]
    ids: dict[int, list[int]]
    white: int = VOID
    boxed: BoxMasks = NO_MASKS
    palette: bytes | None = None
    notes: tuple[Message, ...] = ()
    digest: str = ""
    names: Mapping[int, str] = MappingProxyType({})

    def read(self, index: int) -> Ids | None:
        """The mask of a frame, ids [H, W]; None if it has none. Raises InputError."""
        boxed = self.boxed.read(index)
        if index not in self.masks:
            return boxed
        ids = _read(self.masks[index], self.size, self.white)
        return ids if boxed is None else np.where(ids > 0, ids, boxed)

    def prompt(self, frame: Frame, known: list[int]) -> tuple[Ids, None] | None:
        """`Prompts` of the loop: every object of the mask counts."""
        ids = self.read(frame.index)
        return None if ids is None else (ids, None)

    def check_all_used(self, frame_count: int) -> None:
        """Raises InputError for a mask beyond the end of a video whose length was unknown."""
        for index, mask in self.masks.items():
            if index >= frame_count:
                raise InputError(f"{mask.label}: no frame for this mask, the video ended after {frame_count} frames")

    def write(self, folder: Path, reader: FrameReader) -> None:
        """Writes all masks as ``<frame>.png``, to be corrected and given, if some were made of boxes.

        Raises InputError if that fails.
        """
        if not self.boxed.packed:
            return
        make_folder(folder)
        for index in self.ids:
            ids = self.read(index)
            assert ids is not None
            write_mask(folder / f"{reader.name_of(index)}.png", ids, self.palette)


def match_masks(
    found: FoundMasks, reader: FrameReader, mask_frame: int | str | None = None, boxes: Boxes = NO_BOXES
) -> GivenMasks:
    """Matches masks to the frames of a video by name, and reads each mask once; makes masks of boxes.

    A single mask belongs to the frame that has its name, as "00033" in a video, or else to the first one. A box without
    an object id is a new object, with the smallest id that neither masks nor other boxes have. Pixels that belong to a
    mask and to a box in the same frame are the mask's.

    Args:
        reader: of the video; it is read up to the last frame with a box.
        mask_frame: the frame that a single mask belongs to, regardless of its name: an index, or a name. It is also
            that of boxes which name none.

    Raises:
        InputError: neither masks nor boxes, a name that no frame has, two masks of one frame or of one of its objects,
            no such `mask_frame`, a `mask_frame` with several masks, or a mask that has no objects or that cannot be
            read, or a box that is not in the frame.
    """
    if not found.masks and not boxes.prompts:
        raise _no_masks(found)
    masks, notes = _masks_by_index(found, reader, mask_frame)
    given = _checked(masks, (reader.width, reader.height), [*_notes_of(found, reader), *notes])
    given = given._replace(names=found.names)
    if reader.frame_count is not None:
        given.check_all_used(reader.frame_count)
    if not boxes.prompts:
        if not given.ids:
            raise _no_masks(found)
        return given
    first = 0 if mask_frame is None else index_of(mask_frame, reader, option("mask_frame"))
    return _with_boxes(given, boxes, reader, first)


def _masks_by_index(
    found: FoundMasks, reader: FrameReader, mask_frame: int | str | None
) -> tuple[dict[int, MaskSource], list[str]]:
    """The masks by the index of their frame, and a note if that may surprise."""
    if not found.single:
        masks = _by_frame(found, reader)
        if mask_frame is not None and masks:
            raise InputError(
                f"{option('mask_frame')}: found {mask_frame!r} with {_several(found)}, expected a single mask"
            )
        return masks, []
    ((name, mask),) = found.masks.items()
    if mask_frame is not None:
        return {index_of(mask_frame, reader, option("mask_frame")): mask}, []
    index, why = index_by_name(name, reader)
    return {index: mask}, [f"{mask.label}: {why}; {option('mask_frame')} selects another"] if why else []


def _several(found: FoundMasks) -> str:
    if found.label == option("masks"):
        return "masks by frame"
    return f"the folder {found.label}" if Path(found.label).is_dir() else f"the masks of {found.label}"


def _no_masks(found: FoundMasks) -> InputError:
    if not found.label:
        return InputError(f"{option('masks')}: missing, expected masks, or {option('boxes')}")
    if found.label != option("masks") and Path(found.label).is_dir():
        return InputError(f"{found.label}: no mask in this folder, expected PNGs named after their frames")
    return InputError(f"{found.label}: found no mask, expected one at least")


def _notes_of(found: FoundMasks, reader: FrameReader) -> list[str]:
    notes = [*found.notes]
    if reader.left_out:
        notes.append(f"{_named(list(map(str, reader.left_out)))}: given as a mask, so excluded from the frames")
    if found.others:
        kind = found.files[0].suffix.removeprefix(".").upper()
        notes.append(f"{_named(list(map(str, found.others)))}: ignored, because the masks next to it are {kind}s")
    return notes


class _Facts(NamedTuple):
    """What was found in a mask."""

    ids: list[int]
    note: str | None
    palette: bytes | None


def _checked(masks: dict[int, MaskSource], size: tuple[int, int], notes: list[str]) -> GivenMasks:
    """Reads every mask once. Raises InputError for one that cannot be used."""
    facts: dict[int, _Facts] = {}
    digest = hashlib.sha256()
    for index, source in sorted(masks.items()):
        mask = source.read(size)
        if not mask.ids.any() and source.may_be_empty:
            continue
        require_objects(mask.ids, source.label)
        for part in (str(index).encode(), mask.ids.tobytes(), mask.palette or b""):
            digest.update(part + b"|")
        facts[index] = _Facts(object_ids(mask.ids), mask.note, mask.palette)
    masks = {index: masks[index] for index in facts}
    white = _meaning_of_white(facts[index].ids for index, source in masks.items() if not source.exact)
    ids = {
        index: facts[index].ids if source.exact else _meant(facts[index].ids, white) for index, source in masks.items()
    }
    for index, found in ids.items():
        if not found:
            why = f"nothing but {VOID}, which is void because other masks have other ids"
            raise InputError(f"{masks[index].label}: mask without objects: {why}")
    palette = next((one.palette for one in facts.values()), None) if white != _LONE else None
    notes = [*notes, *_notes_on(masks, facts, white)]
    return GivenMasks(masks, size, ids, white, NO_MASKS, palette, tuple(map(Message, notes)), digest.hexdigest())


def _meaning_of_white(found: Iterable[Collection[int]]) -> int:
    """What 255 is, given the ids of each image."""
    ids = set[int]().union(*found)
    if has_void(ids):
        return 0
    return _LONE if ids == {VOID} else VOID


def _meant(ids: list[int], white: int) -> list[int]:
    """The objects of an image that has these ids."""
    return [white if one == VOID else one for one in ids if one != VOID or white]


def _notes_on(masks: dict[int, MaskSource], facts: dict[int, _Facts], white: int) -> list[str]:
    """How masks were interpreted, one line for all masks of a kind."""
    noted: dict[str, list[str]] = {}
    for index, (ids, note, _) in facts.items():
        notes = [note] if note else []
        if VOID in ids and not masks[index].exact:
            if white == _LONE:
                notes = [
                    f"{note}; it is object {_LONE}" if note else f"found only 0 and {VOID}, treated as object {_LONE}"
                ]
            elif not white:
                notes.append(VOID_NOTE)
        for one in notes:
            noted.setdefault(one, []).append(masks[index].label)
    return [f"{_named(labels)}: {note}" for note, labels in noted.items()]


def _with_boxes(given: GivenMasks, boxes: Boxes, reader: FrameReader, first: int) -> GivenMasks:
    """The masks with those of boxes, which are made here."""
    boxed = make_masks(place_boxes(boxes, reader, first, given.ids), reader)
    given = given._replace(boxed=boxed, notes=(*given.notes, *map(Message, boxed.notes)))
    digest = hashlib.sha256(given.digest.encode())
    ids = dict(given.ids)
    for index in boxed.packed:
        mask = given.read(index)
        assert mask is not None
        digest.update(str(index).encode() + b"|" + mask.tobytes() + b"|")
        ids[index] = object_ids(mask)
    return given._replace(ids=dict(sorted(ids.items())), digest=digest.hexdigest())


def _read(source: MaskSource, size: tuple[int, int], white: int) -> Ids:
    ids = source.read(size).ids
    return ids if source.exact or white == VOID else np.where(ids == VOID, np.uint8(white), ids)


def _by_frame(found: FoundMasks, reader: FrameReader) -> dict[int, MaskSource]:
    masks: dict[int, MaskSource] = {}
    for frame, mask in found.masks.items():
        index = reader.index_of(frame) if isinstance(frame, str) else frame
        if index is None and found.label == option("masks"):
            index = index_of(str(frame), reader, mask.label)
        if index is None:
            raise InputError(
                f"{mask.label}: no frame of {reader.name} has this name, expected masks named after frames"
            )
        if index in masks:
            raise InputError(f"{mask.label}: a mask of the same frame as {Path(masks[index].label).name}")
        if index < 0:
            raise InputError(f"{mask.label}: found a negative index, expected one from 0")
        masks[index] = mask
    return masks


def _named(labels: Sequence[str]) -> str:
    return labels[0] + (f" and {len(labels) - 1} more" if len(labels) > 1 else "")
