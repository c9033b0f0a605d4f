"""The document of the page: a folder with the masks that a person gave and those that tracking found.

H x W pixels, O objects.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import RLock
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stm_fast.errors import InputError, reading, shown
from stm_fast.frame_source import FrameSource
from stm_fast.inference.sightings import Sighting
from stm_fast.page.folder_lock import LOCK, FolderLock
from stm_fast.page.frame_files import FrameFiles, Plane, content, ids_png, names_in, put
from stm_fast.page.history import FrameState, History, PageObject, Snapshot
from stm_fast.page.journal import LARGEST_ID, Journal
from stm_fast.page.project_file import (
    LONGEST_NAME,
    PROJECT,
    ObjectRecord,
    ProjectRecord,
    find_source,
    new_record,
    read_record,
    video_of,
    write_record,
)
from stm_fast.video import FrameReader, open_frames
from stm_fast.video.antialiasing import count_values
from stm_fast.video.overlay_colors import overlay_colors
from stm_fast.whole_file import make_folder, same_file

__all__ = ["Change", "PageObject", "Project"]

Bools = npt.NDArray[np.bool_]  # [H, W]

JOURNAL = "states.jsonl"
_RECENT = 8  # decoded masks that are kept
_LETTERS = {"found": "f", "doubtful": "d", "lost": "l"}  # from best to worst


class Change(NamedTuple):
    """What an edit changed.

    Attributes:
        frames: those whose masks changed.
        objects: whether the list of objects changed.
    """

    frames: tuple[int, ...]
    objects: bool


class Project:
    """A project, which one process works on at a time. All methods can be called from any thread.

    The folder holds ``project.json`` (the video, objects and marks), ``given/<frame>.png`` (only the objects that were
    given there: masks for `segment_video`), ``masks/<frame>.png`` (all objects), ``states.jsonl`` (see `Journal`) and
    ``.soft/<frame>.<id>.png`` (probabilities in 255ths). Each file is whole or absent. A killed process loses at most
    the frame that it was writing: given masks and the journal decide what is in a frame, whatever the other files hold.
    In particular, pixels of deleted objects are never shown, but stay in ``masks/`` until that frame is written again,
    so that undo brings them back.

    `open` makes one.

    Attributes:
        folder: the folder.
        source: its video.
        reader: of the video.
        frame_count: of the video.
    """

    folder: Path
    source: FrameSource
    reader: FrameReader
    frame_count: int

    def __init__(
        self, folder: Path, source: FrameSource, reader: FrameReader, record: ProjectRecord, closing: ExitStack
    ) -> None:
        self.folder, self.source, self.reader, self.frame_count = folder, source, reader, record.video.frames
        self._lock = RLock()
        self._record = record
        self._objects = record.page_objects
        self._marks = range(record.marks[0], record.marks[1] + 1)
        self._history = History()
        self._recent: dict[int, Plane] = {}
        self._pixels: dict[int, dict[int, int]] = {}  # of the objects given in a frame, as far as they were counted
        self._files = FrameFiles(folder, reader.width, reader.height)
        self._letters = bytearray()
        self._journal = Journal(folder / JOURNAL, self.frame_count)
        closing.callback(self._journal.close)
        self._given = set(self._named_frames())
        masks = set(names_in(self._files.masks))
        for index in [i for i in self._journal.frames if f"{reader.name_of(i)}.png" not in masks]:
            self._journal.forget(index)
        self._finish()
        self._update_all()
        self._closing = closing.pop_all()

    @classmethod
    def open(cls, folder: str | Path, source: FrameSource | None = None) -> "Project":
        """Goes on with the project in a folder, or starts one.

        Args:
            folder: of a project, or one that does not exist or is empty; it may hold the video.
            source: the video of a new project, or of one whose video is not where it was: a file, a folder or a glob.

        Raises:
            InputError: a folder that holds something else, or a project that another process works on, whose video
                differs or is missing, or that is damaged; a video whose frames cannot be counted; a live source or URL.
        """
        folder = Path(folder)
        if source is not None and source.kind not in ("path", "glob"):
            raise InputError(f"{source.label}: found a live source or a URL, expected a file or a folder")
        with ExitStack() as closing, reading(folder):
            opened = _go_on if (folder / PROJECT).exists() else _start
            return cls(folder, *opened(folder, source, closing), closing)

    @property
    def objects(self) -> list[PageObject]:
        """The objects, in the order in which they were added."""
        with self._lock:
            return list(self._objects)

    @property
    def marks(self) -> range:
        """The frames to be tracked and exported."""
        with self._lock:
            return self._marks

    @property
    def palette(self) -> bytes:
        """The colors of the objects, RGB from id 0 to 255."""
        with self._lock:
            return _palette(self._objects)

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to undo; edits are forgotten when the project is closed."""
        with self._lock:
            return bool(self._history.past)

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit that was undone, and none since."""
        with self._lock:
            return bool(self._history.future)

    def shown(self, index: int) -> Plane:
        """The ids [H, W] of all objects in a frame. Raises InputError for a damaged file."""
        with self._lock:
            if index not in self._recent:
                while len(self._recent) >= _RECENT:
                    del self._recent[next(iter(self._recent))]
                self._recent[index] = self._compose(index)
            return self._recent[index].copy()

    def given(self, index: int) -> Plane | None:
        """The ids [H, W] of the objects that were given in a frame; None if there are none."""
        with self._lock:
            if self._check_index(index) not in self._given:
                return None
            ids = self._files.plane(self._given_path(index))
            return None if ids is None else _only(ids, self._ids)

    def given_frames(self) -> list[int]:
        """The frames with given masks, in order."""
        with self._lock:
            return sorted(self._given)

    def soft(self, index: int) -> dict[int, Plane]:
        """The probability of each object in a frame as last tracked, [H, W] in 255ths, by id."""
        with self._lock:
            ids, given = self.shown(index), self.given(index)
            planes = {one: np.where(ids == one, np.uint8(255), np.uint8(0)) for one in self._given_pixels(index)}
            for one in self._found(index):
                tracked = self._files.plane(self._files.soft_path(self.reader.name_of(index), one.object_id))
                if tracked is None:
                    tracked = np.where(ids == one.object_id, np.uint8(255), np.uint8(0))
                planes[one.object_id] = tracked if given is None else np.where(given > 0, np.uint8(0), tracked)
            return dict(sorted(planes.items()))

    def sightings(self, index: int) -> list[Sighting]:
        """What was seen of each object in a frame, by id. A given object is certain."""
        with self._lock:
            found = self._found(index)
            if index not in self._given:
                return found
            ids = self.shown(index)
            given = [Sighting(one, pixels, 1.0, 1.0, "found") for one, pixels in self._given_pixels(index).items()]
            return sorted([*given, *(_in_mask(one, ids) for one in found)])

    def states(self) -> str:
        """A letter per frame: "." for nothing, "g" given, or that of its worst object: "f" found, "d" doubtful, "l"
        lost.
        """
        with self._lock:
            return self._letters.decode()

    def give(self, index: int, object_id: int, mask: Bools) -> Change:
        """Gives an object's mask in a frame.

        Args:
            index: of the frame.
            object_id: of the object.
            mask: its pixels [H, W], which are taken from all others; an object that loses all pixels given there is no
                longer given. Without any pixel, the object's mask in this frame is taken back, given or found.

        Raises:
            InputError: no such frame or object, or the files cannot be written.
        """
        with self._lock:
            self._check_object(object_id)
            given, ids = self._given_or_empty(index), self.shown(index)
            found = [one for one in self._found(index) if one.object_id != object_id]
            for plane in (given, ids):
                plane[plane == object_id] = 0
                plane[mask] = object_id
            seen = tuple(_in_mask(one, ids) for one in found)
            given_file = ids_png(given, self.palette) if given.any() else None
            mask_file = ids_png(ids, self.palette) if given_file or seen else None
            state = FrameState(given_file, mask_file, seen)
            return self._edit(Snapshot({index: state}, self._objects, self._marks))

    def keep(
        self,
        index: int,
        ids: Plane,
        sightings: Sequence[Sighting],
        prob: Tensor | npt.NDArray[np.float32] | None,
        object_ids: Sequence[int],
    ) -> Change:
        """Keeps what tracking found in a frame, instead of what it found before. Given masks stay. It is not an edit.

        Args:
            index: of the frame.
            ids: [H, W].
            sightings: of the objects.
            prob: their probabilities [1 + O, H, W]; None if they are not known.
            object_ids: of the channels of `prob`, from the second on.

        Raises:
            InputError: the files cannot be written.
        """
        with self._lock:
            given = self._given_or_empty(index)
            free = self._ids - self._given_pixels(index).keys()
            seen = [one for one in sightings if one.object_id in free]
            composite = np.where(given > 0, given, _only(np.asarray(ids), {one.object_id for one in seen}))
            planes = {} if prob is None else dict(zip(object_ids, np.asarray(prob)[1:], strict=True))
            if self._journal.at(index):
                self._journal.note(index, ())  # until its files belong together
            for one in seen:
                self._files.write_soft(self.reader.name_of(index), one.object_id, planes.get(one.object_id))
            put(self._mask_path(index), ids_png(composite, self.palette))
            self._journal.note(index, seen)
            self._update(index)
            return Change((index,), False)

    def add_object(self, name: str | None = None) -> PageObject:
        """Adds an object. Raises InputError if the project has had 254, or for a name that is none."""
        with self._lock:
            number = self._record.next_id
            if number > LARGEST_ID:
                raise InputError(f"{self.folder}: found {LARGEST_ID} objects, deleted ones included, expected no more")
            color = "#" + overlay_colors()[number].tobytes().hex()
            added = PageObject(number, f"object {number}" if name is None else _checked_name(name), color)
            self._record = self._record.model_copy(update={"next_id": number + 1})
            self._edit(Snapshot({}, (*self._objects, added), self._marks))
            return added

    def change_object(self, object_id: int, name: str | None = None, color: str | None = None) -> Change:
        """Renames or recolors an object. Raises InputError for no such object, name or color."""
        with self._lock:
            old = self._check_object(object_id)
            new = PageObject(
                old.id,
                old.name if name is None else _checked_name(name),
                old.color if color is None else _checked_color(color),
            )
            objects = tuple(new if one == old else one for one in self._objects)
            repainted = self._given if new.color != old.color else ()
            return self._edit(self._with_objects(objects, repainted))

    def delete_object(self, object_id: int) -> Change:
        """Deletes an object and its masks. Raises InputError if there is no such object."""
        with self._lock:
            self._check_object(object_id)
            objects = tuple(one for one in self._objects if one.id != object_id)
            given = [index for index in self._given if object_id in self._given_pixels(index)]
            return self._edit(self._with_objects(objects, given))

    def set_marks(self, first: int, last: int) -> Change:
        """Marks the frames from `first` to `last`, inclusive. Raises InputError if the video has no such frames."""
        with self._lock:
            if not 0 <= first <= last < self.frame_count:
                expected = f"a first and a last one of {self.frame_count} frames"
                raise InputError(f"marks: found {first} and {last}, expected {expected}")
            return self._edit(Snapshot({}, self._objects, range(first, last + 1)))

    def undo(self) -> Change | None:
        """Takes the last edit back; None if there is none. Frames that were tracked since keep what was found."""
        with self._lock:
            return self._history.swap(True, self._exchange)

    def redo(self) -> Change | None:
        """Makes the last edit again that was undone; None if there is none."""
        with self._lock:
            return self._history.swap(False, self._exchange)

    def close(self) -> None:
        """Releases the folder. Nothing else may be called afterwards, except this again."""
        with self._lock:
            self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def _ids(self) -> set[int]:
        return {one.id for one in self._objects}

    def _check_index(self, index: int) -> int:
        if not 0 <= index < self.frame_count:
            raise InputError(f"frame: found {index}, expected one from 0 to {self.frame_count - 1}")
        return index

    def _check_object(self, object_id: int) -> PageObject:
        for one in self._objects:
            if one.id == object_id:
                return one
        raise InputError(f"object: found {object_id}, expected one of {sorted(self._ids)}")

    def _given_path(self, index: int) -> Path:
        return self._files.given / f"{self.reader.name_of(index)}.png"

    def _mask_path(self, index: int) -> Path:
        return self._files.masks / f"{self.reader.name_of(index)}.png"

    def _given_or_empty(self, index: int) -> Plane:
        given = self.given(index)
        return np.zeros((self.reader.height, self.reader.width), np.uint8) if given is None else given

    def _found(self, index: int) -> list[Sighting]:
        """Of the objects that were not given in a frame."""
        free = self._ids - self._given_pixels(index).keys()
        return sorted(one for one in self._journal.at(index) if one.object_id in free)

    def _given_pixels(self, index: int) -> dict[int, int]:
        """The number of pixels of each object that was given in a frame."""
        if index not in self._given:
            self._check_index(index)
            return {}
        if index not in self._pixels:
            counts = count_values(self._given_or_empty(index))
            self._pixels[index] = {one: int(counts[one]) for one in sorted(self._ids) if counts[one]}
        return self._pixels[index]

    def _compose(self, index: int) -> Plane:
        """What a frame shows, even if a killed process left files that do not belong together."""
        given, found = self._given_or_empty(index), self._found(index)
        tracked = self._files.plane(self._mask_path(index)) if found else None
        if tracked is None:
            return given
        return np.where(given > 0, given, _only(tracked, {one.object_id for one in found}))

    def _named_frames(self) -> Iterable[int]:
        """The frames of the files in given/."""
        for file in names_in(self._files.given):
            name, _, suffix = file.rpartition(".")
            if suffix != "png" or not name:
                continue
            index = self.reader.index_of(name)
            if index is None or self.reader.name_of(index) != name:
                raise InputError(f"{self._files.given / file}: no frame of {self.reader.name} has this name")
            yield index

    def _edit(self, after: Snapshot) -> Change:
        """Makes an edit that can be undone."""
        before, change = self._exchange(after)
        if before != after:
            self._history.add(before)
        return change

    def _exchange(self, after: Snapshot) -> tuple[Snapshot, Change]:
        """Puts a snapshot in place; returns what was there before, and what changed."""
        frames = {index: self._frame_state(index) for index in after.frames}
        before = Snapshot(frames, self._objects, self._marks)
        if before == after:
            return before, Change((), False)
        ids = {one.id for one in after.objects}
        come_or_gone = ids ^ self._ids
        if come_or_gone:  # a killed process leaves them deleted, here or when the project is opened again
            self._save([one for one in after.objects if one.id in self._ids], come_or_gone)
        for index, state in after.frames.items():
            self._write_frame(index, frames[index], state)
        changed = {index for index in after.frames if frames[index] != after.frames[index]}
        if (after.objects, after.marks) != (before.objects, before.marks):
            self._objects, self._marks = after.objects, after.marks
            self._save(after.objects)
        if come_or_gone:
            self._recent.clear()
            self._pixels.clear()
            self._update_all()
            changed |= {index for index in self._journal.frames if self._journal.states(index, come_or_gone)}
        return before, Change(tuple(sorted(changed)), after.objects != before.objects)

    def _frame_state(self, index: int) -> FrameState:
        given, mask = content(self._given_path(index)), content(self._mask_path(index))
        return FrameState(given, mask, self._journal.at(index))

    def _write_frame(self, index: int, old: FrameState, new: FrameState) -> None:
        """Replaces the files of a frame; given masks first, which count whatever the others hold."""
        if new.given != old.given:
            put(self._given_path(index), new.given)
            (self._given.discard if new.given is None else self._given.add)(index)
        if new.seen != old.seen:
            known = {one.object_id for one in old.seen}
            self._journal.note(index, [one for one in new.seen if one.object_id in known])
        if new.mask != old.mask:
            put(self._mask_path(index), new.mask)
        if new.seen != self._journal.at(index):
            self._journal.note(index, new.seen)
        self._update(index)

    def _with_objects(self, objects: tuple[PageObject, ...], frames: Collection[int]) -> Snapshot:
        """The project with these objects only, where the given masks of some frames are written anew."""
        ids, palette = {one.id for one in objects}, _palette(objects)
        states = {}
        for index in frames:
            given = _only(self._given_or_empty(index), ids)
            states[index] = self._frame_state(index)._replace(given=ids_png(given, palette) if given.any() else None)
        return Snapshot(states, objects, self._marks)

    def _save(self, objects: Iterable[PageObject], unfinished: Iterable[int] = ()) -> None:
        marks = (self._marks.start, self._marks.stop - 1)
        records = [ObjectRecord(**one._asdict()) for one in objects]
        update = {"objects": records, "marks": marks, "unfinished": sorted(unfinished)}
        self._record = self._record.model_copy(update=update)
        write_record(self.folder, self._record)

    def _finish(self) -> None:
        """Removes objects from the given masks that a killed process was deleting."""
        if self._record.unfinished:
            for index, state in self._with_objects(self._objects, self._given).frames.items():
                self._write_frame(index, self._frame_state(index), state)
            self._save(self._objects)

    def _update(self, index: int) -> None:
        """After a frame was written."""
        self._recent.pop(index, None)
        self._pixels.pop(index, None)
        if self._letters:
            self._letters[index : index + 1] = self._letter(index, self._ids).encode()

    def _update_all(self) -> None:
        letters, ids = bytearray(b"." * self.frame_count), self._ids
        for index in {*self._journal.frames, *self._given}:
            letters[index : index + 1] = self._letter(index, ids).encode()
        self._letters = letters

    def _letter(self, index: int, ids: set[int]) -> str:
        if index in self._given:
            return "g"
        states = self._journal.states(index, ids)
        return next((letter for state, letter in reversed(_LETTERS.items()) if state in states), ".")


def _start(
    folder: Path, source: FrameSource | None, closing: ExitStack
) -> tuple[FrameSource, FrameReader, ProjectRecord]:
    """Starts a project in a folder that has none, and locks it."""
    if source is None:
        raise InputError(f"{folder}: no project in this folder, expected one with {PROJECT}")
    _require_free(folder, source)
    reader = _counted(source)
    record = new_record(folder, source, reader)
    make_folder(folder)
    closing.callback(FolderLock(folder).close)
    write_record(folder, record)
    return source, reader, record


def _go_on(
    folder: Path, source: FrameSource | None, closing: ExitStack
) -> tuple[FrameSource, FrameReader, ProjectRecord]:
    """Locks the folder of a project, and opens its video."""
    closing.callback(FolderLock(folder).close)
    record = read_record(folder)
    source = find_source(folder, record.video, source)
    reader = _counted(source)
    if (differs := record.video.difference(reader)) is not None:
        raise InputError(f"{source.label}: not the video of the project {folder}: {differs}")
    video = video_of(folder, source, reader)
    if video != record.video:
        record = record.model_copy(update={"video": video})
        write_record(folder, record)
    return source, reader, record


def _require_free(folder: Path, source: FrameSource) -> None:
    """Raises InputError if a folder holds anything but the video, or what is left of starting a project."""
    for name in names_in(folder) if folder.exists() else ():
        ours = name == LOCK or (name.startswith(f".{PROJECT}.") and name.endswith(".partial"))
        if not ours and not any(same_file(folder / name, file) for file in source.files):
            raise InputError(f"{folder}: found {shown(name)}, expected a project, or an empty folder for one")


def _counted(source: FrameSource) -> FrameReader:
    """The frames of a video whose number is known."""
    reader = open_frames(source)
    if reader.live or not reader.frame_count:
        raise InputError(
            f"{source.label}: the number of frames is unknown, expected a video with an index, such as an MP4 file"
        )
    return reader


def _only(ids: Plane, kept: Collection[int]) -> Plane:
    """The mask [H, W] with these objects only."""
    table = np.zeros(256, np.uint8)
    table[list(kept)] = list(kept)
    return table[ids]


def _in_mask(sighting: Sighting, ids: Plane) -> Sighting:
    """What is left of an object [H, W] after others took some of its pixels."""
    pixels = int((ids == sighting.object_id).sum())
    return sighting._replace(pixels=pixels) if pixels else Sighting(sighting.object_id, 0, 0.0, 0.0, "lost")


def _palette(objects: Iterable[PageObject]) -> bytes:
    colors = overlay_colors()
    for one in objects:
        colors[one.id] = list(bytes.fromhex(one.color.removeprefix("#")))
    return colors.tobytes()


def _checked_name(name: str) -> str:
    name = name.strip()
    if not (name and len(name) <= LONGEST_NAME and name.isprintable()):
        raise InputError(f"name: found {shown(name)}, expected 1 to {LONGEST_NAME} printable characters")
    return name


def _checked_color(color: str) -> str:
    digits = color.lower().removeprefix("#")
    if len(color) != 7 or len(digits) != 6 or not set(digits) <= set("0123456789abcdef"):
        raise InputError(f"color: found {shown(color)}, expected #rrggbb")
    return f"#{digits}"
