"""COCO: still images with instances."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import numpy as np

from stm_fast.data.source import Bytes, Frame, SingleFrameSource, file_frame
from stm_fast.errors import InputError, check_name, require_folder, shown
from stm_fast.text_file import read_json
from stm_fast.video.coco_shapes import check_shape, image_size, rasterize, require_pycocotools

_MAX_OBJECTS = 254  # of a mask, whose ids are 8 bits
_MAX_PATH_LENGTH = 4096  # of Linux
# line breaks, control characters, and lone surrogates
_INVALID_CHARACTERS = re.compile("[\0-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


class CocoSource(SingleFrameSource):
    """Images of COCO with their instances as objects, painted from the largest to the smallest. Crowds are background.

    An invalid image or annotation raises only when that image is used, so that a run with `skip_corrupt` can skip it.
    An invalid entry that belongs to no image counts as an unusable image.

    Args:
        images: the folder of images.
        annotations: the JSON of the instances, such as `instances_train2017.json`.

    Raises:
        InputError: pycocotools is not installed, a file or folder is missing, or the file contains no instances.
    """

    def __init__(self, images: Path, annotations: Path) -> None:
        require_pycocotools("COCO")
        require_folder(images, "of images")
        self._images, self._annotations = images, annotations
        self._items = _read_items(annotations)
        if not self._items:
            raise InputError(f"{annotations}: no instances, expected some that are not crowds")

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
        """Raises InputError that names the invalid entry if an item cannot be painted."""
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
        """Object ids [H, W] of an image whose instances were checked."""
        height, width = item.image["height"], item.image["width"]
        ids = np.zeros(width * height, np.uint8)  # column by column, as shapes are
        largest = sorted(item.instances, key=lambda one: -one["area"])[:_MAX_OBJECTS]
        for label, instance in enumerate(largest, start=1):
            ids[rasterize(instance["segmentation"], (height, width))] = label
        return np.ascontiguousarray(ids.reshape(width, height).T)


@dataclass
class _Item:
    """An image and its instances as in the file, or the fault of an entry that belongs to no image."""

    image: dict[str, Any] = field(default_factory=dict)
    instances: list[dict[str, Any]] = field(default_factory=list)
    fault: str = ""


def _read_items(file: Path) -> list[_Item]:
    """The images with instances, ordered by id, then the invalid entries. Raises InputError."""
    content = read_json(file, "instances of COCO")
    found = content if isinstance(content, dict) else {"images": None}
    images, annotations = found.get("images", []), found.get("annotations", [])
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise InputError(f"{file}: not a COCO instances file, expected a list of images and one of annotations")
    items: dict[int | str, _Item] = {}
    invalid = [*_add_images(images, items), *_add_instances(annotations, items)]
    ordered = sorted(items.items(), key=lambda entry: (isinstance(entry[0], str), entry[0]))
    return [item for _, item in ordered if item.instances or item.fault] + invalid


def _add_images(images: list[Any], items: dict[int | str, _Item]) -> Iterator[_Item]:
    """Adds an item for each image. Yields those without an id, as faults."""
    for place, image in enumerate(images):
        if not isinstance(image, dict) or not _is_id(image.get("id")):
            yield _Item(fault=f"images[{place}]: found {shown(image)}, expected an image with an id")
        elif image["id"] in items:
            items[image["id"]].fault = f"image {shown(image['id'])}: found two of this id, expected one"
        else:
            items[image["id"]] = _Item(image)


def _add_instances(annotations: list[Any], items: dict[int | str, _Item]) -> Iterator[_Item]:
    """Adds each instance to the item of its image, if any. Yields those without an image id, as faults."""
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
    """Whether an annotation is meant as an object, valid or not: neither a crowd nor only a box."""
    crowd = annotation.get("iscrowd") == 1
    return not crowd and annotation.get("segmentation") not in (None, [])


def _check_image(image: dict[str, Any]) -> tuple[int, int]:
    """The size H, W of an image. Raises InputError for an invalid entry, or a name that leads out of the folder."""
    name = image.get("file_name")
    if not isinstance(name, str) or len(name) > _MAX_PATH_LENGTH or _INVALID_CHARACTERS.search(name):
        raise InputError(f"found file_name {shown(name)}, expected the name of an image")
    for part in PurePath(name).parts or ("",):
        check_name(part, "file_name")
    return image_size(image)


def _check_instance(instance: dict[str, Any], size: tuple[int, int]) -> None:
    """Raises InputError if an instance cannot be painted."""
    if instance.get("iscrowd") not in (None, 0):
        raise InputError(f"found iscrowd {shown(instance['iscrowd'])}, expected 0 or 1")
    area: Any = instance.get("area")
    if type(area) not in (int, float) or not 0 <= area < inf:
        raise InputError(f"found area {shown(area)}, expected a number of pixels")
    check_shape(instance["segmentation"], size)
