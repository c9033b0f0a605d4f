"""Still images with the instances of COCO."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import inf
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import numpy as np

from stm_fast.data.coco_shapes import MOST_PIXELS, check_shape, rasterize
from stm_fast.data.source import Bytes, Frame, StillSource, file_frame
from stm_fast.errors import InputError, check_name, require_folder, shown
from stm_fast.text_file import read_json

HOW_TO_GET_COCO = "COCO needs pycocotools: pip install 'stm_fast[coco]'"
_MOST = 254  # ids of a mask
_LONGEST_PATH = 4096  # of a file: what Linux takes
_NO_NAME = re.compile("[\0-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")  # what would break a line, or is no character


class CocoSource(StillSource):
    """Images of COCO with their instances as objects; the largest is painted first. Crowds are background.

    An invalid image or annotation raises when that image is drawn, so that a run that skips corrupt files skips it. An
    entry that names no image counts as an image that cannot be used.

    Args:
        images: the folder of images.
        annotations: the JSON of the instances, as `instances_train2017.json`.

    Raises InputError: pycocotools is not installed, a missing file or folder, no JSON of instances, no instance in it.
    """

    def __init__(self, images: Path, annotations: Path) -> None:
        if find_spec("pycocotools") is None:
            raise InputError(HOW_TO_GET_COCO)
        require_folder(images, "of pictures")
        self._images, self._annotations = images, annotations
        self._items = _read_items(annotations)
        if not self._items:
            raise InputError(f"{annotations}: no instances in it, expected some that are no crowds")

    def __len__(self) -> int:
        return len(self._items)

    def check_length(self, frames: int) -> None:
        """Raises InputError for the first invalid image or annotation."""
        for item in self._items:
            self._check(item)

    def frame(self, index: int, time: int) -> Frame:
        """Image `index`."""
        item = self._items[index]
        self._check(item)
        return file_frame(self._images / item.image["file_name"], self._paint(item), self._annotations)

    def _check(self, item: "_Item") -> None:
        """Raises InputError, with the place of the fault, where an item cannot be painted."""
        if item.fault:
            raise InputError(f"{self._annotations}: {item.fault}")
        kind, entry = "image", item.image
        try:
            size = _check_image(entry)
            kind = "annotation"
            for entry in item.instances:
                _check_instance(entry, size)
        except InputError as error:
            raise InputError(f"{self._annotations}: {kind} {shown(entry['id'])}: {error}") from None

    def _paint(self, item: "_Item") -> Bytes:
        """Object ids [H, W] of an image whose instances are checked."""
        height, width = item.image["height"], item.image["width"]
        ids = np.zeros(width * height, np.uint8)  # column by column, as shapes are
        largest = sorted(item.instances, key=lambda one: -one["area"])[:_MOST]
        for label, instance in enumerate(largest, start=1):
            ids[rasterize(instance["segmentation"], (height, width))] = label
        return np.ascontiguousarray(ids.reshape(width, height).T)


@dataclass
class _Item:
    """An image and its instances as in the file, or what is wrong with an entry that belongs to no image."""

    image: dict[str, Any] = field(default_factory=dict)
    instances: list[dict[str, Any]] = field(default_factory=list)
    fault: str = ""


def _read_items(file: Path) -> list[_Item]:
    """The images with instances in the order of their ids, then the invalid entries. Raises InputError."""
    content = read_json(file, "instances of COCO")
    found = content if isinstance(content, dict) else {"images": None}
    images, annotations = found.get("images", []), found.get("annotations", [])
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise InputError(f"{file}: no instances of COCO, expected a list of images and one of annotations")
    items: dict[int | str, _Item] = {}
    strays = [*_sort_images(images, items), *_sort_instances(annotations, items)]
    ordered = sorted(items.items(), key=lambda entry: (isinstance(entry[0], str), entry[0]))
    return [item for _, item in ordered if item.instances or item.fault] + strays


def _sort_images(images: list[Any], items: dict[int | str, _Item]) -> Iterator[_Item]:
    """Makes an item of each image. Yields the invalid ones that have no id."""
    for place, image in enumerate(images):
        if not isinstance(image, dict) or not _is_id(image.get("id")):
            yield _Item(fault=f"images[{place}]: found {shown(image)}, expected an image with an id")
        elif image["id"] in items:
            items[image["id"]].fault = f"image {shown(image['id'])}: found two of this id, expected one"
        else:
            items[image["id"]] = _Item(image)


def _sort_instances(annotations: list[Any], items: dict[int | str, _Item]) -> Iterator[_Item]:
    """Puts each instance into the item of its image, if any. Yields the invalid ones that name no image."""
    known: dict[int | str, _Item] = {}
    for place, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or not _is_id(annotation.get("image_id")):
            yield _Item(fault=f"annotations[{place}]: found {shown(annotation)}, expected one with an image_id")
            continue
        item, number = items.get(annotation["image_id"]), annotation.get("id")
        if item is None or not _is_instance(annotation):
            continue
        item.instances.append(annotation)
        if not _is_id(number):
            item.fault = f"annotations[{place}]: found id {shown(number)}, expected a whole number or text"
        elif number in known:
            item.fault = f"annotation {shown(number)}: found two of this id, expected one"
            known[number].fault = item.fault
        else:
            known[number] = item


def _is_id(value: Any) -> TypeGuard[int | str]:
    return type(value) in (int, str)


def _is_instance(annotation: dict[str, Any]) -> bool:
    """Whether it is an object, valid or not: neither a crowd nor just a box."""
    crowd = annotation.get("iscrowd") == 1
    return not crowd and annotation.get("segmentation") not in (None, [])


def _check_image(image: dict[str, Any]) -> tuple[int, int]:
    """The size H, W of an image. Raises InputError for an invalid one, or a name that leads out of its folder."""
    name = image.get("file_name")
    if not isinstance(name, str) or len(name) > _LONGEST_PATH or _NO_NAME.search(name):
        raise InputError(f"found file_name {shown(name)}, expected the name of a picture")
    for part in PurePath(name).parts or ("",):
        check_name(part, "file_name")
    height, width = (_side(image, key) for key in ("height", "width"))
    if height * width > MOST_PIXELS:
        raise InputError(f"found {width}x{height} pixels, expected at most {MOST_PIXELS} in all")
    return height, width


def _side(image: dict[str, Any], key: str) -> int:
    side = image.get(key)
    if type(side) is not int or not 1 <= side <= MOST_PIXELS:
        raise InputError(f"found {key} {shown(side)}, expected 1 to {MOST_PIXELS} pixels")
    return side


def _check_instance(instance: dict[str, Any], size: tuple[int, int]) -> None:
    """Raises InputError where an instance cannot be painted."""
    if instance.get("iscrowd") not in (None, 0):
        raise InputError(f"found iscrowd {shown(instance['iscrowd'])}, expected 0 or 1")
    area: Any = instance.get("area")
    if type(area) not in (int, float) or not 0 <= area < inf:
        raise InputError(f"found area {shown(area)}, expected a number of pixels")
    check_shape(instance["segmentation"], size)
