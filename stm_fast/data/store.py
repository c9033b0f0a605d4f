"""Images and masks of any size, decoded once and kept on a device as bytes, to sample clips from.

N rows of P points each are sampled at once; the points of a row are in one image.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from stm_fast.data.geometry import MAX_SHRINK, bounding_box
from stm_fast.data.source import Bytes, ClipSource, Frame
from stm_fast.video import object_ids

# the image itself, and downscaled by 2, 4 and 8
LEVELS = MAX_SHRINK.bit_length()
# random points on the objects of an image, to center crops on
_OBJECT_POINTS = 64
_OBJECT_POINTS_SEED = 0


class Tables(NamedTuple):
    """Properties of K images, on the host.

    Attributes:
        names: as in `Frame`.
        sizes: int64 [K, 2], H and W.
        object_points: float64 [K, A, 2], y and x of pixels of objects; NaN where there is no object.
        areas: float64 [K, L], the share of the image that labels 1 to L cover.
        boxes: float64 [K, L, 4], top, left, bottom and right of each label.
    """

    names: list[str]
    sizes: npt.NDArray[np.int64]
    object_points: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]


class ImageStore:
    """The images of several sources and their masks, in which the ids of a clip are renumbered 1, 2, ... in order.

    Args:
        sources: all frames are decoded, by one thread per core.
        device: where the bytes are kept.

    Attributes:
        tables: properties of the images, by number.
        labels: the largest number of labels in a clip, L.

    Raises:
        InputError: an image or a mask cannot be read.
    """

    def __init__(self, sources: Sequence[ClipSource], device: torch.device) -> None:
        clips = [(source, index) for source in sources for index in range(len(source))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = list(pool.map(lambda clip: _decode(*clip), clips))
        first = np.cumsum([0, *(len(images) for images in decoded)])
        starts = np.cumsum([0, *(len(source) for source in sources)])
        self._first = [first[a:b].tolist() for a, b in pairwise(starts)]
        images = [image for of_clip in decoded for image in of_clip]
        self.labels = max(len(image.areas) for image in images)
        self.tables = _tables(images, self.labels)
        self._pixels = _joined([level.reshape(-1, 3) for image in images for level in image.levels], device)
        self._ids = _joined([image.ids.reshape(-1) for image in images], device)  # of level 0 alone
        sides = np.array([[level.shape[:2] for level in image.levels] for image in images])  # [K, LEVELS, 2]
        counts = sides.prod(-1)
        ends = counts.cumsum().reshape(counts.shape)
        self._start = torch.from_numpy(ends - counts).to(device)  # [K, LEVELS]
        self._ids_start = torch.from_numpy(np.cumsum(counts[:, 0]) - counts[:, 0]).to(device)  # [K]
        self._sides = torch.from_numpy(sides).to(device)  # [K, LEVELS, 2]

    def number(self, source: int, index: int, time: int) -> int:
        """The number of the image at `time` in clip `index` of a source."""
        return int(self._first[source][index]) + time

    def colors(self, image: Tensor, level: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Bilinear colors float32 [N, P, 3]; the image is mirrored beyond its edges.

        Args:
            image, level: int64 [N].
            x, y: float32 [N, P], in pixels of level 0; the first pixel covers [0, 1).
        """
        height, width = self._sides[image, level].unbind(-1)
        full_height, full_width = self._sides[image, 0].unbind(-1)
        blocks = 2.0 ** level[:, None]
        left, right, part_x = _neighbors(_mirrored(x, full_width[:, None]) / blocks, width[:, None])
        top, bottom, part_y = _neighbors(_mirrored(y, full_height[:, None]) / blocks, height[:, None])
        start, width = self._start[image, level, None], width[:, None]
        upper, lower = (
            torch.lerp(
                self._pixels[start + row * width + left].float(),
                self._pixels[start + row * width + right].float(),
                part_x[..., None],
            )
            for row in (top, bottom)
        )
        return torch.lerp(upper, lower, part_y[..., None])

    def ids(self, image: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Labels uint8 [N, P] of the nearest pixels, mirrored as in `colors`."""
        height, width = (side[:, None] for side in self._sides[image, 0].unbind(-1))
        column = torch.minimum(_mirrored(x, width).long(), width - 1)
        row = torch.minimum(_mirrored(y, height).long(), height - 1)
        return self._ids[self._ids_start[image, None] + row * width + column]

    def cover(self, image: Tensor, label: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The share of a pixel that the object of a label [N] covers, float32 [N, P]: bilinear, 0 beyond the edges."""
        height, width = (side[:, None] for side in self._sides[image, 0].unbind(-1))
        left, top = (x - 0.5).floor().long(), (y - 0.5).floor().long()
        part_x, part_y = x - 0.5 - left, y - 0.5 - top
        start = self._ids_start[image, None]

        def is_object(row: Tensor, column: Tensor) -> Tensor:
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = start + (row * width + column).where(inside, 0)
            return (inside & (self._ids[place] == label[:, None])).float()

        upper, lower = (torch.lerp(is_object(row, left), is_object(row, left + 1), part_x) for row in (top, top + 1))
        return torch.lerp(upper, lower, part_y)


class _Decoded(NamedTuple):
    """A decoded image, its mask and its row in the tables."""

    name: str
    levels: list[Bytes]  # [H / 2^l, W / 2^l, 3], rounded up
    ids: Bytes  # [H, W], labels
    object_points: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]


def _decode(source: ClipSource, index: int) -> list[_Decoded]:
    """Decodes the images of a clip, in order of time."""
    frames = [source.frame(index, time) for time in range(source.length(index))]
    known = sorted({label for frame in frames for label in object_ids(frame.ids)})
    table = np.zeros(256, np.uint8)
    table[known] = np.arange(1, len(known) + 1)
    return [_decoded(frame, table[frame.ids], len(known)) for frame in frames]


def _decoded(frame: Frame, ids: Bytes, labels: int) -> _Decoded:
    image = Image.fromarray(frame.read(1))
    levels = [np.array(image.reduce(1 << level)) for level in range(LEVELS)]
    areas = np.bincount(ids.ravel(), minlength=labels + 1)[1:] / ids.size
    boxes = np.array([bounding_box(ids == label) for label in range(1, labels + 1)]).reshape(labels, 4)
    return _Decoded(frame.name, levels, ids, _draw_object_points(ids), areas, boxes)


def _draw_object_points(ids: Bytes) -> npt.NDArray[np.float64]:
    """Random pixels of objects [A, 2], which depend on the mask alone."""
    places = np.flatnonzero(ids)
    if not len(places):
        return np.full((_OBJECT_POINTS, 2), np.nan)
    drawn = places[np.random.default_rng(_OBJECT_POINTS_SEED).integers(len(places), size=_OBJECT_POINTS)]
    return np.stack(np.divmod(drawn, ids.shape[1]), -1).astype(np.float64)


def _tables(images: Sequence[_Decoded], labels: int) -> Tables:
    areas, boxes = np.zeros((len(images), labels)), np.zeros((len(images), labels, 4))
    for number, image in enumerate(images):
        areas[number, : len(image.areas)] = image.areas
        boxes[number, : len(image.boxes)] = image.boxes
    sizes = np.array([image.ids.shape for image in images], np.int64)
    object_points = np.stack([image.object_points for image in images])
    return Tables([image.name for image in images], sizes, object_points, areas, boxes)


def _joined(arrays: Sequence[Bytes], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def _mirrored(x: Tensor, side: Tensor) -> Tensor:
    """Reflects points outside an image into [0, side]."""
    return side - (torch.remainder(x, 2 * side) - side).abs()


def _neighbors(x: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels on both sides of a point in [0, side], and the weight of the second."""
    place = torch.minimum((x - 0.5).clamp_min(0), side - 1)
    left = place.long()
    return left, torch.minimum(left + 1, side - 1), place - left
