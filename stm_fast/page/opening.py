"""Opens the folder of a project and its video, or starts a project in a folder that has none."""

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, reading, shown
from stm_fast.frame_source import FrameSource
from stm_fast.page.folder_lock import LOCK, FolderLock
from stm_fast.page.frame_files import names_in
from stm_fast.page.project_file import (
    PROJECT,
    ProjectRecord,
    find_source,
    new_record,
    read_record,
    video_of,
    write_record,
)
from stm_fast.video import FrameReader, open_frames
from stm_fast.whole_file import make_folder, same_file


class Opened(NamedTuple):
    """A folder that this process has locked, its video, and its record."""

    folder: Path
    source: FrameSource
    reader: FrameReader
    record: ProjectRecord


def open_folder(folder: Path, source: FrameSource | None, closing: ExitStack) -> Opened:
    """Locks a folder until `closing` is closed. Arguments and errors are those of `Project.open`."""
    if source is not None and source.kind not in ("path", "glob"):
        raise InputError(f"{source.label}: found a live source or a URL, expected a file or a folder")
    with reading(folder):
        if (folder / PROJECT).exists():
            return _go_on(folder, source, closing)
        if source is None:
            raise InputError(f"{folder}: no project in this folder, expected one with {PROJECT}")
        return _start(folder, source, closing)


def _start(folder: Path, source: FrameSource, closing: ExitStack) -> Opened:
    _require_free(folder, source)
    reader = _counted(source)
    record = new_record(folder, source, reader)
    make_folder(folder)
    closing.callback(FolderLock(folder).close)
    write_record(folder, record)
    return Opened(folder, source, reader, record)


def _go_on(folder: Path, source: FrameSource | None, closing: ExitStack) -> Opened:
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
    return Opened(folder, source, reader, record)


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
        expected = "expected a video with an index, such as an MP4 file"
        raise InputError(f"{source.label}: the number of frames is unknown, {expected}")
    return reader
