"""Benchmark sets on disk: the sequences of a split, their images and annotations, and the meaning of their ids.

Layouts are as published. Only `synthetic` writes: it renders its clips on first use.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from stm_fast.choices import SetName
from stm_fast.data.synthetic_set import draw_set
from stm_fast.errors import InputError, check_name, option, require_folder
from stm_fast.listing import by_stem, list_folders, list_images, list_masks
from stm_fast.text_file import read_json, read_lines
from stm_fast.video import VOID, VOID_NOTE, MaskImage, has_void, object_ids, read_mask, without_void
from stm_fast.whole_file import same_file

RESOLUTION = "480p"  # of DAVIS, for evaluation

Ids = npt.NDArray[np.uint8]


class Objects(Enum):
    """The meaning of a set's annotations, and which of them a method is given."""

    ONE = "everything annotated is one object, given in the first frame"  # DAVIS-2016
    FIRST = "the objects of the first annotation, given there; 255 is void"  # DAVIS-2017
    ALL = "every object, given where it first occurs; 255 next to other ids is void"  # YouTube-VOS


@dataclass(frozen=True)
class Sequence:
    """One video of a set.

    Attributes:
        name: of the sequence, and of the folder of its results.
        frames: folder of images; None if only annotations are available.
        annotations: folder of masks with the names of their frames.
        objects: the meaning of the annotations.
        required: names of the frames to submit; None for all.
    """

    name: str
    frames: Path | None
    annotations: Path
    objects: Objects
    required: frozenset[str] | None = None

    def absolute(self) -> "Sequence":
        """The sequence for a process with another working folder."""
        frames = None if self.frames is None else Path(os.path.abspath(self.frames))
        return replace(self, frames=frames, annotations=Path(os.path.abspath(self.annotations)))

    @cached_property
    def annotated(self) -> tuple[str, ...]:
        """Names of the annotated frames, in order."""
        return tuple(self._masks)

    @cached_property
    def fully_annotated(self) -> bool:
        """Whether every required frame has an annotation, so that results can be scored."""
        if self.frames is None:
            return True
        names = self.required or {file.stem for file in list_images(self.frames)}
        return names <= set(self.annotated)

    @cached_property
    def note(self) -> str | None:
        """How the values of the first annotation were interpreted, if not as ids. Raises InputError."""
        if not self.annotated:
            return None
        found = self._mask(self.annotated[0])
        if found.note is None and VOID in found.ids and self._void_in(found.ids):
            return VOID_NOTE
        return found.note

    def annotation(self, name: str) -> Path:
        """The mask file of an annotated frame."""
        return self._masks[name]

    def read_annotation(self, name: str) -> Ids:
        """The object ids ``[H, W]`` of an annotated frame; void pixels are background. Raises InputError."""
        return self.normalized(self._mask(name).ids)

    def normalized(self, ids: Ids) -> Ids:
        """Ids ``[H, W]`` of a mask file as the set defines them."""
        kept = without_void(ids) if self._void_in(ids) else ids
        return (kept > 0).astype(np.uint8) if self.objects is Objects.ONE else kept

    def given(self, name: str, known: list[int]) -> tuple[Ids, list[int]] | None:
        """The annotation that a method is given in a frame: ids ``[H, W]``, and which are new. None if there is none.

        Args:
            name: of the frame.
            known: ids that the method was given before.
        """
        if name not in self.annotated or (known and self.objects is not Objects.ALL):
            return None
        ids = self.read_annotation(name)
        new = [object_id for object_id in object_ids(ids) if object_id not in known]
        return (ids, new) if new else None

    @cached_property
    def _masks(self) -> dict[str, Path]:
        return by_stem(list_masks(self.annotations))

    def _mask(self, name: str) -> MaskImage:
        return read_mask(self.annotation(name))

    def _void_in(self, ids: Ids) -> bool:
        """Whether 255 is void in a mask ``[H, W]``."""
        return self.objects is Objects.FIRST or (VOID in ids and self._has_void)

    @cached_property
    def _has_void(self) -> bool:
        """Whether 255 is void in all masks, including those with no other id: any mask has 255 next to other ids.

        Masks of DAVIS-2016 are 0 and 255; in DAVIS-2017, they have ids.
        """
        return has_void({found for name in self.annotated for found in object_ids(self._mask(name).ids)})


SETS: dict[SetName, Callable[[Path, str], list[Sequence]]] = {}
MEANINGS: dict[SetName, Objects] = {}

_Opener = TypeVar("_Opener", bound=Callable[[Path, str], list[Sequence]])


def _benchmark_set(name: SetName, objects: Objects) -> Callable[[_Opener], _Opener]:
    """Registers a function that lists the sequences of a split under the name of its set."""

    def register(opener: _Opener) -> _Opener:
        SETS[name], MEANINGS[name] = opener, objects
        return opener

    return register


@_benchmark_set("davis16", Objects.ONE)
def davis16(root: Path, split: str) -> list[Sequence]:
    """DAVIS-2016: one object. Lists contain names, as in the 2017 release, or pairs of paths, as in that of 2016."""
    lists = [root / "ImageSets" / folder / f"{split}.txt" for folder in ("2016", RESOLUTION)]
    return _davis(root, lists, Objects.ONE)


@_benchmark_set("davis17", Objects.FIRST)
def davis17(root: Path, split: str) -> list[Sequence]:
    """DAVIS-2017, semi-supervised: train, val, test-dev or test-challenge."""
    return _davis(root, [root / "ImageSets" / "2017" / f"{split}.txt"], Objects.FIRST)


@_benchmark_set("youtube-vos", Objects.ALL)
def youtube_vos(root: Path, split: str) -> list[Sequence]:
    """YouTube-VOS 2018 or 2019: ``<split>/{JPEGImages,Annotations,meta.json}``.

    All frames are segmented if ``all_frames/<split>_all_frames`` or ``<split>_all_frames`` exists; the frames that
    ``meta.json`` lists are submitted.
    """
    folder = root / split
    videos = _read_meta(folder / "meta.json")
    places = [root / "all_frames" / f"{split}_all_frames", root / f"{split}_all_frames", folder]
    frames = next((place / "JPEGImages" for place in places if (place / "JPEGImages").is_dir()), None)
    if frames is None:
        raise InputError(f"{folder}: no JPEGImages there, expected a split of YouTube-VOS")
    return [
        _checked(Sequence(name, frames / name, folder / "Annotations" / name, Objects.ALL, required))
        for name, required in videos.items()
    ]


@_benchmark_set("folder", Objects.ALL)
def folder(root: Path, split: str) -> list[Sequence]:
    """Any data: ``JPEGImages/<sequence>`` and ``Annotations/<sequence>``, or ``JPEGImages/480p/<sequence>`` etc.

    Args:
        split: "all", or the name of a list ``ImageSets/<split>.txt``.
    """
    frames, annotations = (_with_resolution(root / kind) for kind in ("JPEGImages", "Annotations"))
    names = _folders(annotations) if split == "all" else _read_names([root / "ImageSets" / f"{split}.txt"])
    return [_checked(Sequence(name, frames / name, annotations / name, Objects.ALL)) for name in names]


@_benchmark_set("synthetic", Objects.FIRST)
def synthetic(root: Path, split: str) -> list[Sequence]:
    """Synthetic clips of three objects, rendered into `root` on first use.

    Args:
        split: the seed of the first clip.
    """
    if not split.isdecimal():
        raise InputError(f"{option('split')}: found {split!r}, expected the seed of the first synthetic clip")
    return [
        Sequence(name, root / "JPEGImages" / name, root / "Annotations" / name, Objects.FIRST)
        for name in draw_set(root, int(split))
    ]


def annotated_sequences(annotations: Path, objects: Objects) -> list[Sequence]:
    """Sequences of which only annotations are available: a folder for each, or one folder of PNGs.

    Raises:
        InputError: no annotation.
    """
    require_folder(annotations, "of annotations")
    if list_masks(annotations):
        return [Sequence(annotations.resolve().name, None, annotations, objects)]
    return [Sequence(name, None, annotations / name, objects) for name in _folders(annotations)]


def _davis(root: Path, lists: list[Path], objects: Objects) -> list[Sequence]:
    frames, annotations = (root / kind / RESOLUTION for kind in ("JPEGImages", "Annotations"))
    names = _read_names(lists)
    return [_checked(Sequence(name, frames / name, annotations / name, objects)) for name in names]


def _checked(sequence: Sequence) -> Sequence:
    # lists are untrusted, and results are written under these names
    check_name(sequence.name, "name of a sequence")
    if sequence.frames is None or not sequence.frames.is_dir():
        raise InputError(f"{sequence.frames}: no such folder of frames, expected sequence {sequence.name}")
    require_folder(sequence.annotations, f"of masks, expected sequence {sequence.name}")
    if not sequence.annotated:
        raise InputError(f"{sequence.annotations}: no mask in it, expected that of the first frame at least")
    if same_file(sequence.frames, sequence.annotations):
        raise InputError(f"{sequence.annotations}: found the frames there too, expected a folder of masks alone")
    return sequence


def _read_names(lists: list[Path]) -> list[str]:
    """Sequence names from the first list that exists: a name per line, or the paths of a frame and its mask."""
    file = next((file for file in lists if os.path.lexists(file)), None)
    if file is None:
        raise InputError(f"{lists[0]}: no such list of sequences" + "".join(f", nor {other}" for other in lists[1:]))
    names = dict.fromkeys(map(_listed_name, read_lines(file, "a list of sequences")))
    if not names:
        raise InputError(f"{file}: found no sequence, expected a name a line")
    return list(names)


def _listed_name(line: str) -> str:
    """The whole line; "bike" for "/JPEGImages/480p/bike/00000.jpg /Annotations/480p/bike/00000.png"."""
    frame = re.split(r"\s+/?Annotations/", line, maxsplit=1)[0]
    return PurePosixPath(frame).parent.name if re.match("/?JPEGImages/.+/", frame) else line


def _read_meta(file: Path) -> dict[str, frozenset[str]]:
    """The required frames of each video."""
    content = read_json(file, "the meta.json of a split of YouTube-VOS")
    required: dict[str, frozenset[str]] = {}
    for name, video in sorted(_entries(content, "videos", file, "").items()):
        objects = _entries(video, "objects", file, name)
        required[name] = frozenset(frame for thing in objects.values() for frame in _frames(thing, file, name))
    if not required:
        raise InputError(f"{file}: found no video, expected those of a split of YouTube-VOS")
    return required


def _entries(content: Any, key: str, file: Path, video: str) -> dict[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise InputError(f"{file}: found no {key} by name{_of(video)}, expected a meta.json of YouTube-VOS")
    return found


def _frames(thing: Any, file: Path, video: str) -> list[str]:
    """The frame names of an object, checked because they become parts of paths."""
    found = thing.get("frames") if isinstance(thing, dict) else None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{file}: found an object without a list of frames{_of(video)}, expected names such as 00000")
    return [check_name(name, f"{file}: frame{_of(video)}") for name in found]


def _of(video: str) -> str:
    return f" of {video[:80]!r}" if video else ""


def _with_resolution(folder: Path) -> Path:
    return folder / RESOLUTION if (folder / RESOLUTION).is_dir() else folder


def _folders(parent: Path) -> list[str]:
    require_folder(parent, "of sequences")
    names = [path.name for path in list_folders(parent)]
    if not names:
        raise InputError(f"{parent}: no folder of a sequence in it")
    return names
