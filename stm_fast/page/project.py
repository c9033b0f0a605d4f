"""The document of the page: a folder with the masks that a person gave and those that tracking found.

H x W pixels, O objects.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import RLock
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.frame_source import FrameSource
from stm_fast.inference.sightings import Sighting
from stm_fast.page.frame_files import Plane
from stm_fast.page.frame_store import Bools, FrameStore
from stm_fast.page.history import History, Snapshot
from stm_fast.page.objects import LARGEST_ID, PageObject, changed_object, new_object, palette_of
from stm_fast.page.opening import Opened, open_folder
from stm_fast.page.project_file import write_record

__all__ = ["Change", "PageObject", "Project"]


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
    ``.soft/<frame>.<id>.png`` (probabilities in 255ths). Each file is whole or absent, and a killed process loses at
    most the frame that it was writing. A power failure may lose what was found last, but nothing that was given. Pixels
    of deleted objects are removed from ``given/`` and never shown, but stay in ``masks/`` until that frame is written
    again, so that undo brings them back.

    `open` makes one.

    Attributes:
        folder: the folder.
        source: its video.
        reader: of the video.
        frame_count: of the video.
    """

    def __init__(self, opened: Opened, closing: ExitStack) -> None:
        record = opened.record
        self.folder: Path = opened.folder
        self.source: FrameSource = opened.source
        self.reader = opened.reader
        self.frame_count: int = record.video.frames
        self._lock = RLock()
        self._record = record
        self._objects = record.page_objects
        self._marks = range(record.marks[0], record.marks[1] + 1)
        self._history = History()
        self._frames = FrameStore(self.folder, self.reader, self._ids)
        closing.callback(self._frames.close)
        self._finish()
        self._closing = closing.pop_all()
        self._closed = False

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
        with ExitStack() as closing:
            return cls(open_folder(Path(folder), source, closing), closing)

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
            return palette_of(self._objects)

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
            return self._frames.shown(index)

    def given(self, index: int) -> Plane | None:
        """The ids [H, W] of the objects that were given in a frame; None if there are none."""
        with self._lock:
            return self._frames.given(index)

    def given_frames(self) -> list[int]:
        """The frames with given masks, in order."""
        with self._lock:
            return self._frames.given_frames

    def soft(self, index: int) -> dict[int, Plane]:
        """The probability of each object in a frame as last tracked, [H, W] in 255ths, by id."""
        with self._lock:
            return self._frames.soft(index)

    def sightings(self, index: int) -> list[Sighting]:
        """What was seen of each object in a frame, by id. A given object is certain."""
        with self._lock:
            return self._frames.sightings(index)

    def states(self) -> str:
        """A letter for each frame: "." nothing yet, "g" given, or the worst of its objects: "f" found, "d" doubtful,
        "l" lost.
        """
        with self._lock:
            return self._frames.letters

    def state(self, index: int) -> str:
        """The letter of one frame, see `states`."""
        with self._lock:
            return self._frames.letter(index)

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
            self._object(object_id)
            state = self._frames.with_mask(index, object_id, mask, self.palette)
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
            self._require_open()
            planes = {} if prob is None else dict(zip(object_ids, np.asarray(prob)[1:], strict=True))
            self._frames.keep(index, np.asarray(ids), sightings, planes, self.palette)
            return Change((index,), False)

    def add_object(self, name: str | None = None) -> PageObject:
        """Adds an object. Raises InputError if the project has had 254, or for a name that cannot be used."""
        with self._lock:
            number = self._record.next_id
            if number > LARGEST_ID:
                raise InputError(f"{self.folder}: found {LARGEST_ID} objects, deleted ones included, expected no more")
            added = new_object(number, name)
            self._record = self._record.model_copy(update={"next_id": number + 1})
            self._edit(Snapshot({}, (*self._objects, added), self._marks))
            return added

    def change_object(self, object_id: int, name: str | None = None, color: str | None = None) -> Change:
        """Renames or recolors an object. Raises InputError for no such object, name or color."""
        with self._lock:
            old = self._object(object_id)
            new = changed_object(old, name, color)
            objects = tuple(new if one == old else one for one in self._objects)
            repainted = self._frames.given_frames if new.color != old.color else ()
            return self._edit(self._with_objects(objects, repainted))

    def delete_object(self, object_id: int) -> Change:
        """Deletes an object and its masks. Raises InputError if there is no such object."""
        with self._lock:
            self._object(object_id)
            objects = tuple(one for one in self._objects if one.id != object_id)
            given = [i for i in self._frames.given_frames if object_id in self._frames.given_pixels(i)]
            return self._edit(self._with_objects(objects, given))

    def set_marks(self, first: int, last: int) -> Change:
        """Marks the frames from `first` to `last`, inclusive. Raises InputError if the video has no such frames."""
        with self._lock:
            if not 0 <= first <= last < self.frame_count:
                expected = f"a first and a last one of {self.frame_count} frames"
                raise InputError(f"marks: found {first} and {last}, expected {expected}")
            return self._edit(Snapshot({}, self._objects, range(first, last + 1)))

    def undo(self) -> Change | None:
        """Takes the last edit back; None if there is none.

        What was found since is kept, except in a frame whose mask is taken back.
        """
        with self._lock:
            return self._history.swap(True, self._exchange)

    def redo(self) -> Change | None:
        """Makes the last edit again that was undone; None if there is none."""
        with self._lock:
            return self._history.swap(False, self._exchange)

    def close(self) -> None:
        """Releases the folder; from then on, nothing can be changed."""
        with self._lock:
            self._closed = True
            self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def _ids(self) -> set[int]:
        return {one.id for one in self._objects}

    def _object(self, object_id: int) -> PageObject:
        for one in self._objects:
            if one.id == object_id:
                return one
        raise InputError(f"object: found {object_id}, expected one of {sorted(self._ids)}")

    def _require_open(self) -> None:
        if self._closed:
            raise InputError(f"{self.folder}: the project is closed")

    def _edit(self, after: Snapshot) -> Change:
        """Makes an edit that can be undone."""
        before, change = self._exchange(after)
        if before != after:
            self._history.add(before)
        return change

    def _exchange(self, after: Snapshot) -> tuple[Snapshot, Change]:
        """Puts a snapshot in place; returns what was there before, and what changed."""
        self._require_open()
        frames = {i: self._frames.state(i) for i in after.frames}
        before = Snapshot(frames, self._objects, self._marks, after.given_only)
        if after.given_only:
            after = after._replace(frames={i: frames[i]._replace(given=one.given) for i, one in after.frames.items()})
        if before == after:
            return before, Change((), False)
        ids = {one.id for one in after.objects}
        come_or_gone = ids ^ self._ids
        if come_or_gone:  # a killed process leaves them deleted, here or when the project is opened again
            self._save([one for one in after.objects if one.id in self._ids], come_or_gone)
        for index, state in after.frames.items():
            self._frames.write(index, state)
        changed = {index for index, state in after.frames.items() if before.frames[index] != state}
        if (after.objects, after.marks) != (before.objects, before.marks):
            self._objects, self._marks = after.objects, after.marks
            self._save(after.objects)
        if come_or_gone:
            changed.update(self._frames.show_only(ids))
        return before, Change(tuple(sorted(changed)), after.objects != before.objects)

    def _with_objects(self, objects: tuple[PageObject, ...], frames: Iterable[int]) -> Snapshot:
        """The project with these objects only, where the given masks of some frames are written anew."""
        ids, palette = {one.id for one in objects}, palette_of(objects)
        states = {index: self._frames.with_objects(index, ids, palette) for index in frames}
        return Snapshot(states, objects, self._marks, given_only=True)

    def _save(self, objects: Iterable[PageObject], unfinished: Iterable[int] = ()) -> None:
        marks = (self._marks.start, self._marks.stop - 1)
        self._record = self._record.with_contents(objects, marks, unfinished)
        write_record(self.folder, self._record)

    def _finish(self) -> None:
        """Removes objects from the given masks that a killed process was deleting, or bringing back."""
        if self._record.unfinished:
            for index, state in self._with_objects(self._objects, self._frames.given_frames).frames.items():
                self._frames.write(index, state)
            self._save(self._objects)
