"""Masks in a COCO or YouTube-VIS file, as objects of one video. Everything in the file is checked before it is used.

COCO tells objects apart within an image. What makes annotations of several images one object is, in this order,

* their `track_id`, `instance_id` or `object_id`, also among their `attributes`;
* their category, if no image has two annotations of one category.

In a single image each annotation is an object; in YouTube-VIS each annotation is one, in all frames.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from stm_fast.errors import InputError, shown, shown_text
from stm_fast.video.coco_shapes import check_shape, image_size, rasterize
from stm_fast.video.drawn_mask import Annotations, Bools, DrawnMask, number_objects

_IDENTITIES = ("track_id", "instance_id", "object_id")


def read_coco(content: dict[str, Any], file: Path, video: str) -> Annotations:
    """The masks of the images in a COCO file that have annotations, by the stems of the images' names.

    If images are in folders, and one of these has the name of the video, only those in it count.

    Raises InputError for anything that is not as in COCO, or if it is unclear which annotations are one object.
    """
    images = _images_of(_entries(content, "images", file), file, video)
    found: dict[int | str, list[dict[str, Any]]] = {}
    for annotation in _entries(content, "annotations", file):
        image_id = annotation.get("image_id")
        if _is_key(image_id) and image_id in images and annotation.get("segmentation") not in (None, []):
            found.setdefault(image_id, []).append(annotation)
    keys = _object_keys(found.values(), file)
    ids = number_objects((keys[id(one)] for several in found.values() for one in several), str(file))
    masks: dict[str | int, DrawnMask] = {}
    names: dict[int, str] = {}
    categories = _category_names(content)
    for image_id, annotations in found.items():
        image = images[image_id]
        label, stem = f"{file}: image {shown(image['file_name'])}", PurePath(image["file_name"]).stem
        if stem in masks:
            raise InputError(f"{label}: found two images of this name, expected those of one video")
        mask = masks[stem] = DrawnMask(label, _size(image, label), {})
        for annotation in annotations:
            object_id = ids[keys[id(annotation)]]
            _add(mask, object_id, annotation["segmentation"])
            names.setdefault(object_id, _category(annotation, categories))
    return Annotations(masks, _named(names))


def read_youtube_vis(content: dict[str, Any], file: Path, video: str) -> Annotations:
    """The masks of one video in a YouTube-VIS file, by the stems of its frames' names, or else by their position.

    That is the only video in the file, or the one whose name, or whose folder of frames, is that of the video.

    Raises InputError for anything that is not as in YouTube-VIS, or if the video is not in the file.
    """
    entry = _video_of(_entries(content, "videos", file), file, video)
    label = f"{file}: video {shown(entry.get('id'))}"
    size, frames = _size(entry, label), _frames_of(entry, label)
    of_video = [one for one in _entries(content, "annotations", file) if one.get("video_id") == entry.get("id")]
    for number, one in enumerate(of_video):
        if not isinstance(one.get("segmentations"), list) or not _is_key(one.get("id", number)):
            raise InputError(f"{label}: found the annotation {shown(one)}, expected an id and a list of segmentations")
    keys: list[Hashable] = [one.get("id", number) for number, one in enumerate(of_video)]
    if len(set(keys)) < len(keys):
        raise InputError(f"{label}: found two annotations of one id, expected one each")
    ids = number_objects(keys, label)
    masks: dict[str | int, DrawnMask] = {}
    categories = _category_names(content)
    for key, one in zip(keys, of_video, strict=True):
        for index, shape in enumerate(one["segmentations"]):
            if shape not in (None, []):
                frame = frames.get(index, index)
                mask = masks.setdefault(frame, DrawnMask(f"{label}: frame {shown_text(str(frame))}", size, {}))
                _add(mask, ids[key], shape)
    names = {ids[key]: _category(one, categories) for key, one in zip(keys, of_video, strict=True)}
    return Annotations(masks, _named(names))


def _entries(content: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    """A list of the file."""
    found = content.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{file}: found {key} {shown(found)}, expected a list of entries")
    return found


def _is_key(value: object) -> bool:
    return type(value) in (int, str)


def _images_of(images: list[dict[str, Any]], file: Path, video: str) -> dict[int | str, dict[str, Any]]:
    """The images of the video, by id."""
    for image in images:
        name = image.get("file_name")
        if not _is_key(image.get("id")) or not isinstance(name, str) or not PurePath(name).stem:
            raise InputError(f"{file}: found the image {shown(image)}, expected an id and a file_name")
    of_video = [image for image in images if PurePath(image["file_name"]).parent.name == video]
    return {image["id"]: image for image in of_video or images}


def _video_of(videos: list[dict[str, Any]], file: Path, name: str) -> dict[str, Any]:
    found = videos if len(videos) == 1 else [one for one in videos if name in _names_of(one)]
    if len(found) != 1:
        raise InputError(f"{file}: found {len(found)} videos named {name} among {len(videos)}, expected one")
    return found[0]


def _names_of(video: dict[str, Any]) -> Iterator[str]:
    """The names that a video of YouTube-VIS has."""
    names = video.get("file_names")
    for value in (video.get("name"), *(names[:1] if isinstance(names, list) else ())):
        if isinstance(value, str):
            yield from (PurePath(value).stem, PurePath(value).parent.name)


def _frames_of(video: dict[str, Any], label: str) -> dict[int, str]:
    """The names of the frames of a video by position; empty if it has none."""
    names = video.get("file_names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and PurePath(name).stem for name in names):
        raise InputError(f"{label}: found file_names {shown(names)}, expected the names of its frames")
    stems = [PurePath(name).stem for name in names]
    if len(set(stems)) < len(stems):
        raise InputError(f"{label}: found two frames of one name in file_names, expected one each")
    return dict(enumerate(stems))


def _object_keys(by_image: Iterable[list[dict[str, Any]]], file: Path) -> dict[int, Hashable]:
    """What each annotation has in common with the others of its object, by `id()`."""
    images = list(by_image)
    annotations = [one for several in images for one in several]
    keys: dict[int, Hashable] = {id(one): _identity(one) for one in annotations}
    if any(key is not None for key in keys.values()):
        without = next((one for one in annotations if keys[id(one)] is None), None)
        if without is not None:
            found = f"annotation {shown(without.get('id'))} has no track_id"
            raise InputError(f"{file}: {found}, expected one as in the others")
        return keys
    if len(images) == 1:
        return {id(one): number for number, one in enumerate(annotations, start=1)}
    for several in images:
        category, count = Counter(shown(one.get("category_id")) for one in several).most_common(1)[0]
        if count > 1:
            found = f"{count} annotations of category {category} in one image, and no track_id"
            raise InputError(f"{file}: found {found}, expected a track_id that says which are the same object")
    return {id(one): shown(one.get("category_id")) for one in annotations}


def _identity(annotation: dict[str, Any]) -> int | str | None:
    attributes = annotation.get("attributes")
    for place in (annotation, attributes if isinstance(attributes, dict) else {}):
        for name in _IDENTITIES:
            value: Any = place.get(name)
            if _is_key(value):
                return value  # type: ignore[no-any-return]
    return None


def _category_names(content: dict[str, Any]) -> dict[Any, str]:
    categories = content.get("categories")
    entries = [one for one in categories if isinstance(one, dict)] if isinstance(categories, list) else []
    return {one["id"]: one["name"] for one in entries if _is_key(one.get("id")) and isinstance(one.get("name"), str)}


def _category(annotation: dict[str, Any], names: dict[Any, str]) -> str:
    """The name of an annotation's category; empty if there is none."""
    category = annotation.get("category_id")
    return names.get(category, "") if _is_key(category) else ""


def _named(names: dict[int, str]) -> dict[int, str]:
    return {object_id: name for object_id, name in sorted(names.items()) if name}


def _size(entry: dict[str, Any], label: str) -> tuple[int, int]:
    """W, H of an image or a video."""
    try:
        height, width = image_size(entry)
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    return width, height


def _add(mask: DrawnMask, object_id: int, shape: Any) -> None:
    mask.shapes.setdefault(object_id, []).append(partial(_drawn, shape, mask.size[::-1]))


def _drawn(shape: Any, size: tuple[int, int]) -> Bools:
    """The mask [H, W] of a shape of COCO in an image of `size` H, W."""
    check_shape(shape, size)
    return np.ascontiguousarray(rasterize(shape, size).reshape(size[::-1]).T)
