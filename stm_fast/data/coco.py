"""Stills out of COCO instances, through pycocotools."""

import contextlib
import io
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from stm_fast.data.pictures import shot_of
from stm_fast.data.raw import Bytes, Shot
from stm_fast.errors import InputError, check_name, require_folder

HOW_TO_GET_COCO = "COCO needs pycocotools: pip install 'stm_fast[coco]'"
_MOST = 254  # ids of a mask


class CocoSource:
    """Pictures of COCO with their instances as objects; the largest is painted first. Crowds are background.

    Args:
        pictures: the folder of pictures.
        annotations: the JSON of the instances, as `instances_train2017.json`.

    Raises InputError: pycocotools is not installed, a missing file or folder, no JSON of instances, no instance in it,
        one without what is needed.
    """

    moving = False

    def __init__(self, pictures: Path, annotations: Path) -> None:
        if find_spec("pycocotools") is None:
            raise InputError(HOW_TO_GET_COCO)
        require_folder(pictures, "of pictures")
        self._pictures, self._annotations = pictures, annotations
        self._coco = _open(annotations)
        of_picture = self._coco.imgToAnns
        self._numbers = sorted(n for n in self._coco.imgs if any(_is_object(a) for a in of_picture.get(n, ())))
        if not self._numbers:
            raise InputError(f"{annotations}: no instances in it, expected some that are no crowds")
        for number in self._numbers:
            _check_keys(annotations, "image", self._coco.imgs[number], ("file_name", "height", "width"))
            _check_file_name(annotations, self._coco.imgs[number])
            for instance in filter(_is_object, of_picture[number]):
                _check_keys(annotations, "annotation", instance, ("area",))

    def __len__(self) -> int:
        return len(self._numbers)

    def check_length(self, frames: int) -> None:
        """A still is as long as it is asked to be."""

    def length(self, index: int) -> int:
        """A still is one shot."""
        return 1

    def times(self, index: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        """Nothing here is random."""
        return [0] * frames

    def shot(self, index: int, time: int) -> Shot:
        """Picture `index`."""
        image = self._coco.imgs[self._numbers[index]]
        return shot_of(self._pictures / image["file_name"], self._paint(image), self._annotations)

    def _paint(self, image: dict[str, Any]) -> Bytes:
        """Object ids [H, W] of a picture."""
        ids = np.zeros((image["height"], image["width"]), np.uint8)
        instances = [one for one in self._coco.imgToAnns[image["id"]] if _is_object(one)]
        instances.sort(key=lambda one: -one["area"])
        for label, instance in enumerate(instances[:_MOST], start=1):
            ids[self._coco.annToMask(instance) > 0] = label
        return ids


def _open(annotations: Path) -> Any:
    """The `pycocotools.coco.COCO` of a file. Raises InputError."""
    from pycocotools.coco import COCO

    if not annotations.is_file():
        raise InputError(f"{annotations}: no such file of annotations")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
            return COCO(annotations)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise InputError(f"{annotations}: no instances of COCO ({type(error).__name__}: {error})") from error


def _is_object(annotation: dict[str, Any]) -> bool:
    return not annotation.get("iscrowd") and bool(annotation.get("segmentation"))


def _check_file_name(file: Path, image: dict[str, Any]) -> None:
    """Raises InputError where the name of a picture would lead out of the folder of pictures."""
    name, what = image["file_name"], f"{file}: file_name of image {image['id']}"
    if not isinstance(name, str):
        raise InputError(f"{what}: found {name!r}, expected text")
    for part in PurePath(name).parts or ("",):
        check_name(part, what)


def _check_keys(file: Path, what: str, entry: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if key not in entry:
            raise InputError(f"{file}: {what} {entry['id']}: no {key}, expected one as COCO has")
