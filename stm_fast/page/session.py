"""One person's work on one video: everything that the routes of the page call."""

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from stm_fast.choices import Result
from stm_fast.errors import InputError, check_name
from stm_fast.frame_source import FrameSource, frame_source
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM
from stm_fast.page import results
from stm_fast.page.bodies import Marks, ObjectChange, Prompt
from stm_fast.page.events import Events
from stm_fast.page.export import export
from stm_fast.page.frames import FrameCache
from stm_fast.page.gestures import mask_of
from stm_fast.page.jobs import Conflict, Jobs
from stm_fast.page.pictures import mask_png
from stm_fast.page.project import Change, PageObject, Project
from stm_fast.page.prompts import Prompter
from stm_fast.page.tracker import TrackedFrame, track_project
from stm_fast.page.upload import most_bytes
from stm_fast.whole_file import same_file

_RESULTS = "results"
_ANOTHER = "found a frame of another video"


class Absent(Exception):
    """Something that does not exist; the message is one line."""


class _Opened(NamedTuple):
    """A video that is open.

    Attributes:
        key: changes with the video, so that a browser does not show a frame of another one.
    """

    project: Project
    frames: FrameCache
    key: str


class Session:
    """A project that is open, its network and its pages. Methods may be called from any thread; edits wait their turn.

    They raise Absent for what does not exist, Conflict for what cannot be done now, and InputError for bad input.

    Args:
        folder: where uploaded videos and their projects are kept.
        load: returns the network; called in the thread that uses it.
        options: as of a run over the video.
        prompter: makes masks of gestures.
        events: to the open pages.

    Attributes:
        network: None until it is loaded.
    """

    def __init__(
        self, folder: Path, load: Callable[[], STM], options: RunOptions, prompter: Prompter, events: Events
    ) -> None:
        self.folder = folder
        self.events = events
        self._load = load
        self._options = options
        self._prompter = prompter
        self.network: STM | None = None
        self._unloadable: str | None = None  # why loading it has failed
        self._opened: _Opened | None = None
        self._jobs = Jobs(events)
        self._edit = RLock()

    # the network, and the video

    def load_network(self) -> None:
        """Starts loading the network."""

        def job(_: Callable[[], bool]) -> None:
            self._loaded_network()

        self._jobs.start("network", job)

    def open(self, source: FrameSource | None, folder: Path) -> Project:
        """Opens a project in place of the one that is open, see `Project.open`."""
        with self._edit:
            self._jobs.halt()
            before = self._opened
            try:
                if before is not None and same_file(before.project.folder, folder):
                    self._replace(None)  # a folder is open once at a time
                project = Project.open(folder, source)
                self._replace(_Opened(project, FrameCache(project.reader), secrets.token_hex(4)))
            finally:
                if self._opened is not before:
                    self.events.publish({"kind": "project"})
        return project

    def check_replaceable(self) -> None:
        """Raises Conflict if another video cannot be opened now."""
        self._jobs.check_can_halt()

    def open_upload(self, video: Path, *, new: bool) -> None:
        """Opens a video of the session's folder; removes it if it is new and cannot be opened."""
        source = frame_source(video)
        try:
            self.open(source, project_folder(source, self.folder))
        except (InputError, Conflict):
            if new:
                video.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Stops everything. What was done is saved already."""
        self._jobs.close()
        with self._edit:
            self._replace(None)

    def _replace(self, opened: _Opened | None) -> None:
        """Closes the video that is open once another one is in its place."""
        before, self._opened = self._opened, opened
        if before is not None:
            before.frames.close()
            before.project.close()

    def state(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON."""
        opened = self._opened
        shared = {
            "running": self._jobs.running,
            "network_error": self._unloadable,
            "clicks_alone": self._prompter.clicks_alone,
            "results": results.choices(),
            "uploads": most_bytes(self.folder),
        }
        if opened is None:
            nothing = {"video": None, "objects": [], "states": "", "marks": [0, 0]}
            return nothing | {"can_undo": False, "can_redo": False} | shared
        return _described(opened) | {"states": opened.project.states()} | shared

    # pictures

    def frame_jpeg(self, index: int, width: int | None, key: str | None) -> bytes:
        """A frame as JPEG, at most `width` pixels across."""
        opened = self._video()
        if key not in (None, opened.key):
            raise Absent(_ANOTHER)
        _check_frame(opened, index)
        try:
            return opened.frames.jpeg(index, width)
        except InputError as error:
            if self._opened is opened:
                raise
            raise Absent(_ANOTHER) from error  # its video was closed meanwhile

    def mask_png(self, index: int, object_id: int | None) -> bytes:
        """The masks of a frame, or that of one object, as a palette PNG."""
        opened = self._video()
        _check_frame(opened, index)
        ids = opened.project.shown(index)
        if object_id is not None:
            ids = ids * (ids == object_id)
        return mask_png(ids, {one.id: one.color for one in opened.project.objects})

    # edits

    def prompt(self, prompt: Prompt) -> dict[str, Any]:
        """Gives or corrects the mask of an object; stops tracking first."""
        with self._edit:
            opened = self._halted()
            began = time.perf_counter()
            _check_frame(opened, prompt.frame)
            _check_object(opened, prompt.object)
            image = opened.frames.frame(prompt.frame).image
            made = mask_of(prompt, image, opened.project.shown(prompt.frame) == prompt.object, self._prompter)
            change = opened.project.give(prompt.frame, prompt.object, made.mask)
            pixels, seconds = int(made.mask.sum()), round(time.perf_counter() - began, 3)
            return self._tell(opened, change) | {"pixels": pixels, "seconds": seconds, "found": made.found}

    def undo(self) -> dict[str, Any]:
        """Takes the last edit back; stops tracking first."""
        with self._edit:
            opened = self._halted()
            return self._tell(opened, _done(opened.project.undo(), "undo"))

    def redo(self) -> dict[str, Any]:
        """Repeats an edit that was taken back; stops tracking first."""
        with self._edit:
            opened = self._halted()
            return self._tell(opened, _done(opened.project.redo(), "redo"))

    def add_object(self, name: str | None) -> dict[str, Any]:
        """Adds an object."""
        with self._edit:
            opened = self._video()
            added = opened.project.add_object(name)
            return self._tell(opened, Change((), True)) | {"object": _plain(added)}

    def change_object(self, object_id: int, change: ObjectChange) -> dict[str, Any]:
        """Changes the name or the color of an object."""
        with self._edit:
            opened = self._video()
            _check_object(opened, object_id)
            return self._tell(opened, opened.project.change_object(object_id, change.name, change.color))

    def delete_object(self, object_id: int) -> dict[str, Any]:
        """Deletes an object with its masks; stops tracking first."""
        with self._edit:
            opened = self._halted()
            _check_object(opened, object_id)
            return self._tell(opened, opened.project.delete_object(object_id))

    def set_marks(self, marks: Marks) -> dict[str, Any]:
        """Sets the frames to be tracked and exported."""
        with self._edit:
            opened = self._video()
            return self._tell(opened, opened.project.set_marks(marks.first, marks.last))

    # what takes long

    def track(self, start: int, back: bool) -> None:
        """Starts tracking."""
        with self._edit:
            opened = self._video()
            _check_frame(opened, start)
            _check_any_mask(opened)

            def job(should_stop: Callable[[], bool]) -> None:
                model = self._loaded_network()
                track_project(opened.project, model, self._options, start, back, should_stop, self._tell_frame)

            self._jobs.start("track", job)

    def export(self, write: Collection[Result]) -> None:
        """Starts writing results."""
        with self._edit:
            opened = self._video()
            _check_any_mask(opened)
            folder = opened.project.folder / _RESULTS

            def job(should_stop: Callable[[], bool]) -> None:
                export(opened.project, folder, write, should_stop, self._tell_export)

            self._jobs.start("export", job, lambda: {"files": _files(folder)})

    def stop(self) -> None:
        """Asks what is running to stop; an event tells when it has."""
        self._jobs.stop()

    def results(self) -> dict[str, Any]:
        """The results that were exported."""
        folder = self._video().project.folder / _RESULTS
        return {"folder": str(folder), "files": _files(folder)}

    def result(self, name: str) -> Path:
        """An exported file or folder."""
        found = results.find(self._video().project.folder / _RESULTS, name)
        if found is None:
            raise Absent(f"{name}: no such result")
        return found

    def _loaded_network(self) -> STM:
        """The network; loads it if that was not done yet, or has failed."""
        if self.network is None:
            try:
                self.network, self._unloadable = self._load(), None
            except InputError as error:
                self._unloadable = str(error)
                raise
        return self.network

    def _video(self) -> _Opened:
        if self._opened is None:
            raise Conflict("no video is open")
        return self._opened

    def _halted(self) -> _Opened:
        """What is open, with nothing running that changes it."""
        opened = self._video()
        self._jobs.halt()
        return opened

    def _tell(self, opened: _Opened, change: Change) -> dict[str, Any]:
        """Publishes a change, and returns it as JSON."""
        states = opened.project.states()
        described = _described(opened)
        event = {
            "kind": "change",
            "frames": list(change.frames),
            "states": {str(index): states[index] for index in change.frames},
            "objects": described["objects"] if change.objects else None,
            "marks": described["marks"],
            "can_undo": described["can_undo"],
            "can_redo": described["can_redo"],
        }
        self.events.publish(event)
        return event

    def _tell_frame(self, tracked: TrackedFrame) -> None:
        self.events.publish({"kind": "frame"} | asdict(tracked))

    def _tell_export(self, done: int, total: int | None) -> None:
        self.events.publish({"kind": "export", "done": done, "total": total})


def project_folder(source: FrameSource, folder: Path) -> Path:
    """The default folder of a video's project, in a folder. Raises InputError if the video has no usable name."""
    return folder / f"{check_name(source.name, f'{source.label}: name of its project')}-project"


def _described(opened: _Opened) -> dict[str, Any]:
    """The video, objects and marks, as JSON."""
    project = opened.project
    reader = project.reader
    video = {
        "key": opened.key,
        "name": reader.name,
        "frames": project.frame_count,
        "width": reader.width,
        "height": reader.height,
        "rate": float(reader.frame_rate),
        "folder": str(project.folder),
    }
    return {
        "video": video,
        "objects": [_plain(one) for one in project.objects],
        "marks": [project.marks[0], project.marks[-1]],
        "can_undo": project.can_undo,
        "can_redo": project.can_redo,
    }


def _plain(one: PageObject) -> dict[str, Any]:
    return {"id": one.id, "name": one.name, "color": one.color}


def _files(folder: Path) -> list[dict[str, Any]]:
    return [one._asdict() for one in results.found_in(folder)]


def _check_frame(opened: _Opened, index: int) -> None:
    if index >= opened.project.frame_count:
        raise Absent(f"frame {index}: not in the video, which has {opened.project.frame_count} frames")


def _check_object(opened: _Opened, object_id: int) -> None:
    if object_id not in [one.id for one in opened.project.objects]:
        raise Absent(f"object {object_id}: no such object")


def _check_any_mask(opened: _Opened) -> None:
    if not set(opened.project.states()) - {"."}:
        raise Conflict("no masks yet: draw around an object first")


def _done(change: Change | None, what: str) -> Change:
    if change is None:
        raise Conflict(f"nothing to {what}")
    return change
