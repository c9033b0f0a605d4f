"""What is in each frame of a project: the masks that were given and found there, and what tracking saw.

H x W pixels, O objects.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError
from stm_fast.inference.sightings import Sighting
from stm_fast.page.frame_files import FrameFiles, Plane, content, ids_png, names_in, put
from stm_fast.page.history import FrameState
from stm_fast.page.journal import Journal
from stm_fast.video import FrameReader
from stm_fast.video.antialiasing import count_values

JOURNAL = "states.jsonl"

Bools = npt.NDArray[np.bool_]  # [H, W]

_RECENT = 8  # decoded masks that are kept
_LETTERS = {"found": "f", "doubtful": "d", "lost": "l"}  # from best to worst


class FrameStore:
    """Reads and writes the frames of one project.

    Given masks and the journal decide what is in a frame, so that files that do not belong together, as a killed
    process leaves them, do no harm: the mask of all objects counts only for those that the journal has seen. Given
    masks survive a power failure; what was found may not, and damaged files of it are left out.

    Args:
        folder: of the project.
        reader: of its video.
        object_ids: of its objects; others are not shown.

    Raises:
        InputError: a given mask of no frame, or files that cannot be read or written.
    """

    def __init__(self, folder: Path, reader: FrameReader, object_ids: Collection[int]) -> None:
        assert reader.frame_count is not None
        self._reader, self._count = reader, reader.frame_count
        self._ids = frozenset(object_ids)
        self._recent: dict[int, Plane] = {}
        self._pixels: dict[int, dict[int, int]] = {}  # of the objects given in a frame, as far as they were counted
        self._files = FrameFiles(folder, reader.width, reader.height)
        self._given = set(self._named_frames())
        masks = set(names_in(self._files.masks))
        self._journal = Journal(folder / JOURNAL, self._count)
        for index in [i for i in self._journal.frames if f"{reader.name_of(i)}.png" not in masks]:
            self._journal.forget(index)
        self._letters = self._all_letters()

    @property
    def letters(self) -> str:
        """The state of each frame, see `Project.states`."""
        return self._letters.decode()

    @property
    def given_frames(self) -> list[int]:
        """The frames with given masks, in order."""
        return sorted(self._given)

    def letter(self, index: int) -> str:
        """The state of one frame."""
        return chr(self._letters[self._checked(index)])

    def show_only(self, object_ids: Collection[int]) -> list[int]:
        """Shows these objects from now on. Returns the frames with found masks of those that come or go."""
        changed = self._ids ^ frozenset(object_ids)
        self._ids = frozenset(object_ids)
        self._recent.clear()
        self._pixels.clear()
        self._letters = self._all_letters()
        return [index for index in self._journal.frames if self._journal.states(index, changed)]

    def shown(self, index: int) -> Plane:
        """The ids [H, W] of all objects."""
        if index not in self._recent:
            while len(self._recent) >= _RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[index] = self._composed(index)
        return self._recent[index].copy()

    def given(self, index: int) -> Plane | None:
        """The ids [H, W] of the objects that were given; None if there are none."""
        if self._checked(index) not in self._given:
            return None
        ids = self._files.plane(self._given_path(index))
        return None if ids is None else _only(ids, self._ids)

    def given_pixels(self, index: int) -> dict[int, int]:
        """The number of pixels of each object that was given, by id."""
        if self._checked(index) not in self._given:
            return {}
        if index not in self._pixels:
            counts = count_values(self._given_or_empty(index))
            self._pixels[index] = {one: int(counts[one]) for one in sorted(self._ids) if counts[one]}
        return self._pixels[index]

    def sightings(self, index: int) -> list[Sighting]:
        """What was seen of each object, by id. A given object is certain."""
        found = self._found(index)
        if index not in self._given:
            return found
        ids = self.shown(index)
        given = [Sighting(one, pixels, 1.0, 1.0, "found") for one, pixels in self.given_pixels(index).items()]
        return sorted([*given, *(_in_mask(one, ids) for one in found)])

    def soft(self, index: int) -> dict[int, Plane]:
        """The probability of each object, [H, W] in 255ths, by id."""
        ids, given = self.shown(index), self.given(index)
        planes = {one: np.where(ids == one, np.uint8(255), np.uint8(0)) for one in self.given_pixels(index)}
        for one in self._found(index):
            tracked = self._files.found_plane(self._files.soft_path(self._reader.name_of(index), one.object_id))
            if tracked is None:
                tracked = np.where(ids == one.object_id, np.uint8(255), np.uint8(0))
            planes[one.object_id] = tracked if given is None else np.where(given > 0, np.uint8(0), tracked)
        return dict(sorted(planes.items()))

    def keep(
        self,
        index: int,
        ids: Plane,
        sightings: Sequence[Sighting],
        prob: Mapping[int, npt.NDArray[np.float32]],
        palette: bytes,
    ) -> None:
        """Replaces what was found; `prob` are the probabilities [H, W] by id, as far as they are known."""
        given = self._given_or_empty(index)
        free = self._ids - self.given_pixels(index).keys()
        seen = [one for one in sightings if one.object_id in free]
        composite = np.where(given > 0, given, _only(ids, {one.object_id for one in seen}))
        if index in self._given:
            seen = [_in_mask(one, composite) for one in seen]
        try:
            if self._journal.at(index):
                self._journal.note(index, ())  # until its files belong together
            for one in seen:
                self._files.write_soft(self._reader.name_of(index), one.object_id, prob.get(one.object_id))
            put(self._mask_path(index), ids_png(composite, palette))
            self._journal.note(index, seen)
        finally:
            self._update(index)

    def state(self, index: int) -> FrameState:
        """A frame as it is now."""
        given, mask = content(self._given_path(index)), content(self._mask_path(index))
        return FrameState(given, mask, self._journal.at(index))

    def with_mask(self, index: int, object_id: int, mask: Bools, palette: bytes) -> FrameState:
        """A frame in which an object has a mask [H, W]; without any pixel, it is neither given nor found."""
        given, ids = self._given_or_empty(index), self.shown(index)
        found = [one for one in self._found(index) if one.object_id != object_id]
        for plane in (given, ids):
            plane[plane == object_id] = 0
            plane[mask] = object_id
        seen = tuple(_in_mask(one, ids) for one in found)
        given_file = ids_png(given, palette) if given.any() else None
        return FrameState(given_file, ids_png(ids, palette) if given_file or seen else None, seen)

    def with_objects(self, index: int, object_ids: Collection[int], palette: bytes) -> FrameState:
        """A frame in which only these objects were given."""
        given = _only(self._given_or_empty(index), object_ids)
        return self.state(index)._replace(given=ids_png(given, palette) if given.any() else None)

    def write(self, index: int, new: FrameState) -> None:
        """Replaces a frame; given masks first, which count whatever the other files hold."""
        old = self.state(index)
        try:
            if new.given != old.given:
                put(self._given_path(index), new.given, durable=True)
                (self._given.discard if new.given is None else self._given.add)(index)
            if new.seen != old.seen:
                known = {one.object_id for one in old.seen}
                self._journal.note(index, [one for one in new.seen if one.object_id in known])
            if new.mask != old.mask:
                put(self._mask_path(index), new.mask)
            if new.seen != self._journal.at(index):
                self._journal.note(index, new.seen)
        finally:
            self._update(index)

    def close(self) -> None:
        """Closes the journal."""
        self._journal.close()

    def _checked(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise InputError(f"frame: found {index}, expected one from 0 to {self._count - 1}")
        return index

    def _given_path(self, index: int) -> Path:
        return self._files.given / f"{self._reader.name_of(index)}.png"

    def _mask_path(self, index: int) -> Path:
        return self._files.masks / f"{self._reader.name_of(index)}.png"

    def _given_or_empty(self, index: int) -> Plane:
        given = self.given(index)
        return np.zeros((self._reader.height, self._reader.width), np.uint8) if given is None else given

    def _found(self, index: int) -> list[Sighting]:
        """Of the objects that were not given."""
        free = self._ids - self.given_pixels(index).keys()
        return sorted(one for one in self._journal.at(index) if one.object_id in free)

    def _composed(self, index: int) -> Plane:
        given, found = self._given_or_empty(index), self._found(index)
        if not found:
            return given
        tracked = self._files.found_plane(self._mask_path(index))
        if tracked is None:
            self._journal.forget(index)
            self._update(index)
            return given
        return np.where(given > 0, given, _only(tracked, {one.object_id for one in found}))

    def _named_frames(self) -> Iterable[int]:
        """The frames of the files in given/."""
        for file in names_in(self._files.given):
            name, _, suffix = file.rpartition(".")
            if suffix != "png" or not name:
                continue
            index = self._reader.index_of(name)
            if index is None or self._reader.name_of(index) != name:
                raise InputError(f"{self._files.given / file}: no frame of {self._reader.name} has this name")
            yield index

    def _update(self, index: int) -> None:
        """After a frame was written."""
        self._recent.pop(index, None)
        self._pixels.pop(index, None)
        self._letters[index : index + 1] = self._letter(index)

    def _all_letters(self) -> bytearray:
        letters = bytearray(b"." * self._count)
        for index in {*self._journal.frames, *self._given}:
            letters[index : index + 1] = self._letter(index)
        return letters

    def _letter(self, index: int) -> bytes:
        if index in self._given:
            return b"g"
        states = self._journal.states(index, self._ids)
        return next((letter for state, letter in reversed(_LETTERS.items()) if state in states), ".").encode()


def _only(ids: Plane, kept: Collection[int]) -> Plane:
    """The mask [H, W] with these objects only."""
    table = np.zeros(256, np.uint8)
    table[list(kept)] = list(kept)
    return table[ids]


def _in_mask(sighting: Sighting, ids: Plane) -> Sighting:
    """What is left of an object [H, W] after others took some of its pixels."""
    pixels = int((ids == sighting.object_id).sum())
    return sighting._replace(pixels=pixels) if pixels else Sighting(sighting.object_id, 0, 0.0, 0.0, "lost")
