"""Masks in files of LabelMe, one for each frame: polygons, rectangles and circles.

Shapes with the same label are parts of one object, and with a group_id, those with the same label and group_id.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from stm_fast.errors import InputError, shown
from stm_fast.video.coco_shapes import image_size
from stm_fast.video.drawn_mask import Annotations, Bools, DrawnMask, number_objects

Points = list[tuple[float, float]]

# numbers of points that each kind of shape may have
_COUNTS = {"polygon": (3, 2**16), "rectangle": (2, 2), "circle": (2, 2)}
# how far a point may be outside the image, as a share of its longer side
_BEYOND = 1.0


def read_labelme(contents: dict[Path, Any]) -> Annotations:
    """The masks of files of LabelMe, by the stems of the files. Files without shapes have none.

    Object ids are the labels if these are whole numbers from 1 to 255; otherwise labels, followed by their group_id,
    are sorted and numbered from 1.

    Raises InputError for anything that is not as in LabelMe, or for another kind of shape.
    """
    shapes = [(file, shape) for file, content in contents.items() for shape in _shapes_of(content, file)]
    names = {id(shape): _name(shape, file) for file, shape in shapes}
    ids = number_objects(names.values(), str(next(iter(contents), "")))
    masks: dict[str | int, DrawnMask] = {}
    for file, shape in shapes:
        if file.stem not in masks:
            masks[file.stem] = DrawnMask(str(file), _size_of(contents[file], file), {})
        mask = masks[file.stem]
        draw = partial(_drawn, shape["shape_type"], _points_of(shape, mask.size, file), mask.size)
        mask.shapes.setdefault(ids[names[id(shape)]], []).append(draw)
    return Annotations(masks, {number: str(name) for name, number in ids.items()}, tuple(_united(shapes)))


def _shapes_of(content: Any, file: Path) -> Iterator[dict[str, Any]]:
    """The shapes of a file, each with its kind."""
    found = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{file}: found shapes {shown(found)}, expected a file of LabelMe")
    for shape in found:
        kind = shape.setdefault("shape_type", "polygon") if isinstance(shape, dict) else None
        if not isinstance(kind, str) or kind not in _COUNTS:
            expected = f"expected one of type {', '.join(_COUNTS)}"
            raise InputError(f"{file}: found a shape of type {shown(kind)}, {expected}")
        yield shape


def _united(shapes: list[tuple[Path, dict[str, Any]]]) -> Iterator[str]:
    """A note if shapes of one label are several in a frame without a group_id, so that they may be meant as several."""
    counts = Counter((file, shape["label"]) for file, shape in shapes if shape.get("group_id") is None)
    for (file, label), count in counts.items():
        if count > 1:
            found = f"found {count} shapes labeled {shown(label)}"
            yield f"{file}: {found}, treated as one object; a group_id separates them"
            return


def _name(shape: dict[str, Any], file: Path) -> str:
    """What shapes of one object have in common."""
    label, group = shape.get("label"), shape.get("group_id")
    if not isinstance(label, str) or not label or (group is not None and type(group) not in (int, str)):
        raise InputError(f"{file}: found label {shown(label)} and group_id {shown(group)}, expected text and a number")
    return label if group is None else f"{label} {group}"


def _size_of(content: dict[str, Any], file: Path) -> tuple[int, int]:
    """W, H of the image that shapes were drawn on."""
    try:
        height, width = image_size({"height": content.get("imageHeight"), "width": content.get("imageWidth")})
    except InputError as error:
        raise InputError(f"{file}: imageHeight, imageWidth: {error}") from None
    return width, height


def _points_of(shape: dict[str, Any], size: tuple[int, int], file: Path) -> Points:
    points, kind = shape.get("points"), shape["shape_type"]
    least, most = _COUNTS[kind]
    if not isinstance(points, list) or not least <= len(points) <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise InputError(f"{file}: found a {kind} with the points {shown(points)}, expected {expected} of them")
    beyond = _BEYOND * max(size)
    for point in points:
        numbers = isinstance(point, list) and len(point) == 2 and all(type(one) in (int, float) for one in point)
        # false for a NaN too
        if not numbers or not all(-beyond <= one <= side + beyond for one, side in zip(point, size, strict=True)):
            raise InputError(f"{file}: found the point {shown(point)}, expected x and y near the image")
    return [(float(x), float(y)) for x, y in points]


def _drawn(kind: str, points: Points, size: tuple[int, int]) -> Bools:
    """The mask [H, W] of a shape, as LabelMe draws it, in an image of W, H."""
    picture = Image.new("1", size)
    drawing = ImageDraw.Draw(picture)
    if kind == "polygon":
        drawing.polygon(points, fill=1, outline=1)
    elif kind == "rectangle":
        xs, ys = zip(*points, strict=True)
        drawing.rectangle((min(xs), min(ys), max(xs), max(ys)), fill=1, outline=1)
    else:
        (x, y), (beside, below) = points
        radius = hypot(beside - x, below - y)
        drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    return np.array(picture)
