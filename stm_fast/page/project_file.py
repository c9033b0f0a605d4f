"""project.json: the video of a project, its objects and marks. Strictly checked, as it may come from a stranger."""

import glob
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stm_fast.errors import InputError, option, require_file, shown
from stm_fast.frame_source import FrameSource
from stm_fast.page.journal import ObjectId
from stm_fast.page.objects import LARGEST_ID, LONGEST_NAME, PageObject
from stm_fast.text_file import read_text
from stm_fast.versions import __version__
from stm_fast.video import FrameReader
from stm_fast.whole_file import same_file, whole_file

PROJECT = "project.json"

Count = Annotated[int, Field(ge=1, lt=2**31)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, pattern=r"^[^\x00-\x1f\x7f]+$")]
Color = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
_MOST_BYTES = 2**20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Video(_Strict):
    """The video of a project.

    Attributes:
        kind: "glob" for a pattern of images.
        source: a file or folder inside the project's folder or beside it, as seen from there; others from the root.
        rate: frames per second, as "24000/1001".
    """

    kind: Literal["path", "glob"]
    source: Text
    width: Count
    height: Count
    frames: Count
    rate: Annotated[str, Field(pattern=r"^[0-9]{1,12}(/[0-9]{1,12})?$")]

    def difference(self, reader: FrameReader) -> str | None:
        """How the video of a reader differs, for a message; None if it can be the same."""
        found = (reader.width, reader.height, reader.frame_count, str(reader.frame_rate))
        expected = (self.width, self.height, self.frames, self.rate)
        return None if found == expected else f"found {_facts(*found)}, expected {_facts(*expected)}"


class ObjectRecord(_Strict):
    """An object, see `PageObject`."""

    id: ObjectId
    name: Name
    color: Color


class ProjectRecord(_Strict):
    """The content of project.json.

    Attributes:
        next_id: of the next object.
        marks: the first and the last frame to be tracked and exported.
        unfinished: ids that may be in given masks although these are not objects now, because of a killed process.
    """

    format: Literal[1]
    stm_fast: Annotated[str, Field(max_length=100)]
    video: Video
    objects: Annotated[list[ObjectRecord], Field(max_length=LARGEST_ID)]
    next_id: Annotated[int, Field(ge=1, le=LARGEST_ID + 1)]
    marks: tuple[Index, Index]
    unfinished: Annotated[list[ObjectId], Field(max_length=LARGEST_ID)] = []

    @model_validator(mode="after")
    def _fits(self) -> "ProjectRecord":
        ids = [one.id for one in self.objects]
        if len(set(ids)) < len(ids) or any(one >= self.next_id for one in ids):
            raise ValueError(f"objects: found the ids {ids}, expected different ones below next_id, {self.next_id}")
        if not self.marks[0] <= self.marks[1] < self.video.frames:
            expected = f"a first and a last one of {self.video.frames} frames"
            raise ValueError(f"marks: found {list(self.marks)}, expected {expected}")
        return self

    @property
    def page_objects(self) -> tuple[PageObject, ...]:
        """The objects."""
        return tuple(PageObject(one.id, one.name, one.color) for one in self.objects)

    def with_contents(
        self, objects: Iterable[PageObject], marks: tuple[int, int], unfinished: Iterable[int]
    ) -> "ProjectRecord":
        """The record with these objects, marks and unfinished ids."""
        records = [ObjectRecord(**one._asdict()) for one in objects]
        return self.model_copy(update={"objects": records, "marks": marks, "unfinished": sorted(unfinished)})


def new_record(folder: Path, source: FrameSource, reader: FrameReader) -> ProjectRecord:
    """The record of a project without objects. The frames of the video must have been counted."""
    assert reader.frame_count is not None
    return ProjectRecord(
        format=1,
        stm_fast=__version__,
        video=video_of(folder, source, reader),
        objects=[],
        next_id=1,
        marks=(0, reader.frame_count - 1),
    )


def video_of(folder: Path, source: FrameSource, reader: FrameReader) -> Video:
    """Describes the video of a reader for the project in `folder`."""
    assert reader.frame_count is not None
    return Video(
        kind="glob" if source.kind == "glob" else "path",
        source=_stored(folder, source),
        width=reader.width,
        height=reader.height,
        frames=reader.frame_count,
        rate=str(reader.frame_rate),
    )


def read_record(folder: Path) -> ProjectRecord:
    """Reads project.json. Raises InputError, which names the file and the entry, for anything else."""
    path = folder / PROJECT
    require_file(path, "a project")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path}: found {path.stat().st_size} bytes, expected a project, of {_MOST_BYTES} at most")
    try:
        record = ProjectRecord.model_validate_json(read_text(path, "a project"))
        if Fraction(record.video.rate) <= 0:
            raise InputError(f"{path}: video.rate: found {record.video.rate}, expected more than 0")
    except ValidationError as error:
        raise InputError(f"{path}: {_fault(error)}") from None
    except ZeroDivisionError:
        raise InputError(f"{path}: video.rate: found a denominator of 0, expected a rate") from None
    return record


def write_record(folder: Path, record: ProjectRecord) -> None:
    """Writes project.json, which survives a power failure then. Raises InputError if it cannot be written."""
    with whole_file(folder / PROJECT, durable=True) as partial:
        partial.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def find_source(folder: Path, video: Video, given: FrameSource | None) -> FrameSource:
    """The video of a project: where it was, or, if it is not there any more, inside or beside the folder, or as given.

    Raises InputError if it is not found, or if another one is given while it is.
    """
    if video.kind == "glob":
        return given or FrameSource(video.source, "glob")
    stored = os.path.normpath(folder.absolute() / video.source)
    places = [Path(stored), folder / Path(stored).name, folder.absolute().parent / Path(stored).name]
    place = next((one for one in places if one.exists()), None)
    if given is not None:
        if place == places[0] and (given.path is None or not same_file(place, given.path)):
            raise InputError(f"{folder}: found the project of {place}, expected that of {given.label}")
        return given
    if place is None:
        found = f"{stored}: no such file or folder, which was the video of the project {folder}"
        raise InputError(f"{found}; open the video where it is now, with {option('output', folder)}")
    return FrameSource(str(place), "path")


def _stored(folder: Path, source: FrameSource) -> str:
    """Where a source is, as seen from the project's folder if it is inside or beside it and no glob; or from the root.

    Raises InputError for a name that JSON cannot hold.
    """
    if source.kind == "glob":
        stored = os.path.join(glob.escape(os.getcwd()), source.text)
    else:
        path, folder = Path(os.path.abspath(source.text)), folder.absolute()
        near = folder in path.parents or path.parent == folder.parent
        stored = os.path.relpath(path, folder) if near else str(path)
    if stored != stored.encode(errors="replace").decode():
        raise InputError(f"{shown(stored)}: found a name that is not Unicode, expected one that {PROJECT} can hold")
    return stored


def _facts(width: int, height: int, frames: int | None, rate: str) -> str:
    return f"{frames} frames of {width}x{height} at {rate}/s"


def _fault(error: ValidationError) -> str:
    """The first fault, with the entry that has it."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{where}: missing, expected a project of this version"
    expected = first["msg"].removeprefix("Input should be ")
    return f"{where}: found {shown(first['input'])}, expected {expected}" if where else f"not a project ({expected})"
