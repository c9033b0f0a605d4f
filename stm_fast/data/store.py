"""Pictures and masks decoded once and kept on a device as bytes, whatever their sizes: sampled where a clip needs them.

N rows of P points each are sampled at once, row n in one picture.
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

from stm_fast.data.geometry import MAX_SHRINK
from stm_fast.data.raw import Bytes, ClipSource, Shot
from stm_fast.video import object_ids

# the picture itself, and means of blocks of 2, 4 and 8 pixels a side
LEVELS = MAX_SHRINK.bit_length()
# points on the objects of a picture that are kept, to aim at
_AIMS = 64
_AIMS_SEED = 0


class Tables(NamedTuple):
    """What is known of each of K pictures, on the host.

    Attributes:
        names: of their files, or what they were drawn from.
        sizes: int64 [K, 2], H and W.
        aims: float64 [K, A, 2], y and x of pixels of objects; NaN where there is no object.
        areas: float64 [K, L], the share of the picture that labels 1 to L cover.
        boxes: float64 [K, L, 4], top, left, bottom and right of each label.
    """

    names: list[str]
    sizes: npt.NDArray[np.int64]
    aims: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]


class PictureStore:
    """The pictures of some sources and their masks, in which the ids of a clip are labels 1, 2, ... in their order.

    Args:
        sources: every shot of theirs is decoded, by a thread for each core.
        device: where the bytes lie.

    Attributes:
        tables: of the pictures, by number.
        labels: how many labels there are at most, L.

    Raises InputError: a picture or a mask that cannot be read.
    """

    def __init__(self, sources: Sequence[ClipSource], device: torch.device) -> None:
        clips = [(source, index) for source in sources for index in range(len(source))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = list(pool.map(lambda clip: _decode(*clip), clips))
        first = np.cumsum([0, *(len(pictures) for pictures in decoded)])
        starts = np.cumsum([0, *(len(source) for source in sources)])
        self._first = [first[a:b].tolist() for a, b in pairwise(starts)]
        pictures = [picture for of_clip in decoded for picture in of_clip]
        self.labels = max(len(picture.areas) for picture in pictures)
        self.tables = _tables(pictures, self.labels)
        self._pixels = _joined([level.reshape(-1, 3) for picture in pictures for level in picture.levels], device)
        self._ids = _joined([picture.ids.reshape(-1) for picture in pictures], device)  # of level 0 alone
        sides = np.array([[level.shape[:2] for level in picture.levels] for picture in pictures])  # [K, LEVELS, 2]
        counts = sides.prod(-1)
        ends = counts.cumsum().reshape(counts.shape)
        self._start = torch.from_numpy(ends - counts).to(device)  # [K, LEVELS]
        self._ids_start = torch.from_numpy(np.cumsum(counts[:, 0]) - counts[:, 0]).to(device)  # [K]
        self._sides = torch.from_numpy(sides).to(device)  # [K, LEVELS, 2]

    def number(self, source: int, index: int, time: int) -> int:
        """Of the picture at a time of a clip of a source."""
        return int(self._first[source][index]) + time

    def colours(self, picture: Tensor, level: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Bilinear colours float32 [N, P, 3]; beyond an edge lies the mirrored picture.

        Args:
            picture, level: int64 [N].
            x, y: float32 [N, P], in pixels of level 0, the first of which covers [0, 1).
        """
        height, width = self._sides[picture, level].unbind(-1)
        full_height, full_width = self._sides[picture, 0].unbind(-1)
        blocks = 2.0 ** level[:, None]
        left, right, part_x = _neighbours(_mirrored(x, full_width[:, None]) / blocks, width[:, None])
        top, bottom, part_y = _neighbours(_mirrored(y, full_height[:, None]) / blocks, height[:, None])
        start, width = self._start[picture, level, None], width[:, None]
        upper, lower = (
            torch.lerp(
                self._pixels[start + row * width + left].float(),
                self._pixels[start + row * width + right].float(),
                part_x[..., None],
            )
            for row in (top, bottom)
        )
        return torch.lerp(upper, lower, part_y[..., None])

    def ids(self, picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Labels uint8 [N, P] of the nearest pixels, mirrored as in `colours`."""
        height, width = (side[:, None] for side in self._sides[picture, 0].unbind(-1))
        column = torch.minimum(_mirrored(x, width).long(), width - 1)
        row = torch.minimum(_mirrored(y, height).long(), height - 1)
        return self._ids[self._ids_start[picture, None] + row * width + column]

    def cover(self, picture: Tensor, label: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """How much of a pixel is the object of a label [N], float32 [N, P]: bilinear, 0 beyond an edge."""
        height, width = (side[:, None] for side in self._sides[picture, 0].unbind(-1))
        left, top = (x - 0.5).floor().long(), (y - 0.5).floor().long()
        part_x, part_y = x - 0.5 - left, y - 0.5 - top
        start = self._ids_start[picture, None]

        def is_object(row: Tensor, column: Tensor) -> Tensor:
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = start + (row * width + column).where(inside, 0)
            return (inside & (self._ids[place] == label[:, None])).float()

        upper, lower = (torch.lerp(is_object(row, left), is_object(row, left + 1), part_x) for row in (top, top + 1))
        return torch.lerp(upper, lower, part_y)


class _Picture(NamedTuple):
    """A decoded picture, its mask and what the tables say of it."""

    name: str
    levels: list[Bytes]  # [H / 2^l, W / 2^l, 3], rounded up
    ids: Bytes  # [H, W], labels
    aims: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]


def _decode(source: ClipSource, index: int) -> list[_Picture]:
    """The pictures of a clip in order of time."""
    shots = [source.shot(index, time) for time in range(source.length(index))]
    known = sorted({label for shot in shots for label in object_ids(shot.ids)})
    table = np.zeros(256, np.uint8)
    table[known] = np.arange(1, len(known) + 1)
    return [_picture(shot, table[shot.ids], len(known)) for shot in shots]


def _picture(shot: Shot, ids: Bytes, labels: int) -> _Picture:
    image = Image.fromarray(shot.read(1))
    levels = [np.array(image.reduce(1 << level)) for level in range(LEVELS)]
    areas = np.bincount(ids.ravel(), minlength=labels + 1)[1:] / ids.size
    boxes = np.array([_box(ids == label) for label in range(1, labels + 1)]).reshape(labels, 4)
    return _Picture(shot.name, levels, ids, _draw_aims(ids), areas, boxes)


def _box(shape: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _draw_aims(ids: Bytes) -> npt.NDArray[np.float64]:
    """Some pixels of objects [A, 2], the same for the same mask."""
    places = np.flatnonzero(ids)
    if not len(places):
        return np.full((_AIMS, 2), np.nan)
    drawn = places[np.random.default_rng(_AIMS_SEED).integers(len(places), size=_AIMS)]
    return np.stack(np.divmod(drawn, ids.shape[1]), -1).astype(np.float64)


def _tables(pictures: Sequence[_Picture], labels: int) -> Tables:
    areas, boxes = np.zeros((len(pictures), labels)), np.zeros((len(pictures), labels, 4))
    for number, picture in enumerate(pictures):
        areas[number, : len(picture.areas)] = picture.areas
        boxes[number, : len(picture.boxes)] = picture.boxes
    sizes = np.array([picture.ids.shape for picture in pictures], np.int64)
    aims = np.stack([picture.aims for picture in pictures])
    return Tables([picture.name for picture in pictures], sizes, aims, areas, boxes)


def _joined(arrays: Sequence[Bytes], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def _mirrored(x: Tensor, side: Tensor) -> Tensor:
    """Points of a picture continued by its mirror images, in the picture: [0, side]."""
    return side - (torch.remainder(x, 2 * side) - side).abs()


def _neighbours(x: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels left and right of a point in [0, side], and how far it is on the way from the one to the other."""
    place = torch.minimum((x - 0.5).clamp_min(0), side - 1)
    left = place.long()
    return left, torch.minimum(left + 1, side - 1), place - left
