"""Training clips drawn in batches from images on the device, without workers, copies or decoding.

B clips of T frames, h x w pixels each; A + 1 crops are tried for each clip; the store has L labels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm_fast.data.clips import ClipBatch, ClipDataset, SampleKey
from stm_fast.data.color import color_transforms, recolored
from stm_fast.data.compose import CROP_TRIES, PASTED_PLACE, motion_of, pasted_motion
from stm_fast.data.geometry import (
    CONTROL_POINTS,
    MAX_SHRINK,
    Matrix,
    crop_view,
    mirrored,
    motion_path,
    motion_range,
    offsets,
    pasted_views,
    warps_of,
)
from stm_fast.data.store import ImageStore
from stm_fast.errors import InputError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# intermediate results take about 100 bytes per pixel
_CHUNK = 64
# points per side at which a crop is tested for objects
_TEST_POINTS = 32


class DeviceClips(ClipDataset):
    """A `ClipDataset` that keeps its images on a device and draws whole batches there.

    Mixture, ranges and probabilities are those of `ClipDataset`, but its random numbers are not. Other differences:

    * whether a crop shows an object is tested at a grid of points;
    * a clip without an object is replaced by the first one of its batch that has objects;
    * there is no `skip_corrupt`: every image is decoded when `to` is called.
    """

    store: ImageStore

    def to(self, device: torch.device) -> "DeviceClips":
        """Decodes all images and keeps them on a device. Raises InputError if one cannot be read."""
        self.store = ImageStore(self._sources, device)
        self._device = device
        return self

    def batch(self, keys: Sequence[SampleKey]) -> ClipBatch:
        """The clips of the keys, on the device; they depend on the seed and the keys alone.

        Raises:
            InputError: no clip has an object.
        """
        parts = [self._draw_part(keys[first : first + _CHUNK]) for first in range(0, len(keys), _CHUNK)]
        frames, ids, objects = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
        names = [name for part in parts for name in part.names]
        counts: list[int] = objects.tolist()
        if not any(counts):
            raise InputError(f"data: {len(counts)} clips drawn and none can be used, expected objects in them")
        first = next(clip for clip, count in enumerate(counts) if count)
        if not all(counts):
            kept = [clip if count else first for clip, count in enumerate(counts)]
            order = torch.tensor(kept, device=self._device)
            frames, ids = frames[order], ids[order]
            counts, names = [counts[clip] for clip in kept], [names[clip] for clip in kept]
        return ClipBatch(frames, ids, counts, names, [])

    def _draw_part(self, keys: Sequence[SampleKey]) -> "_Part":
        random = _BatchRandom([np.random.default_rng((self._seed, key.epoch, key.index)) for key in keys])
        drawn = [self._choose(key, generator) for key, generator in zip(keys, random.generators, strict=True)]
        images = np.array([of_clip.images for of_clip in drawn])  # [B, T]
        moving = np.array([of_clip.moving for of_clip in drawn])
        frames, ids = self._sample_crops(images, moving, random)  # [B, T, h w, 3], [B, T, h w]
        for slot in range(max(len(of_clip.pasted) for of_clip in drawn)):
            rows = np.array([row for row, of_clip in enumerate(drawn) if slot < len(of_clip.pasted)])
            stills = np.array([drawn[row].pasted[slot] for row in rows])
            self._paste(frames, ids, rows, stills, self.store.labels + 1 + slot, random.subset(rows))
        ids, objects = self._choose_objects(ids, random)
        shape = (len(drawn), self._frames)
        return _Part(
            self._recolor(frames, random).view(*shape, 3, *self._size),
            ids.view(*shape, *self._size),
            objects,
            [self.store.tables.names[of_clip.images[0]] for of_clip in drawn],
        )

    def _choose(self, key: SampleKey, generator: np.random.Generator) -> "_Chosen":
        """Draws the images that a clip is made of."""
        source = int(generator.choice(len(self._sources), p=self._shares))
        moving = self._sources[source].moving
        images = self._draw_images(source, self._frames, key.max_skip, generator)
        if moving and generator.random() < self._augmentation.reverse:
            images.reverse()
        stills = self._draw_pasted_sources(moving, generator)
        return _Chosen(images, moving, [self._draw_images(still, 1, 0, generator)[0] for still in stills])

    def _draw_images(self, source: int, frames: int, max_skip: int, generator: np.random.Generator) -> list[int]:
        index = int(generator.integers(len(self._sources[source])))
        times = self._sources[source].times(index, frames, max_skip, generator)
        return [self.store.number(source, index, time) for time in times]

    def _sample_crops(self, images: Ints, moving: Bools, random: "_BatchRandom") -> tuple[Tensor, Tensor]:
        """Samples moving crops of images [B, T]: colors float32 [B, T, h w, 3] and labels uint8 [B, T, h w]."""
        side = min(self._size)
        reach = np.where(
            moving[:, None],
            motion_range(motion_of(True, self._augmentation), side),
            motion_range(motion_of(False, self._augmentation), side),
        )  # [B, 5]
        path = self._on_device(motion_path(random.uniform(-1, 1, self._frames, 5) * reach[:, None]))  # [B, T, 3, 3]
        crops = self._on_device(self._draw_crops(images[:, 0], random))  # [B, A + 1, 2, 3]
        numbers = torch.from_numpy(images).to(self._device)
        views = self._first_crop_with_object(numbers[:, 0], crops, path[:, 0])[:, None] @ path  # [B, T, 2, 3]
        warps = self._draw_warps(moving, random)  # [B, T, h w, 2]
        x, y = _points(views.flatten(0, 1), self._size, warps.flatten(0, 1))  # [B T, h w]
        level = _levels(views).repeat_interleave(self._frames)
        shape = images.shape
        frames = self.store.colors(numbers.flatten(), level, x, y).view(*shape, -1, 3)
        return frames, self.store.ids(numbers.flatten(), x, y).view(*shape, -1)

    def _draw_crops(self, images: Ints, random: "_BatchRandom") -> Matrix:
        """Candidate views [B, A + 1, 2, 3] of the first frames; the last is centered on an object if there is one."""
        augmentation, tables = self._augmentation, self.store.tables
        sizes = tables.sizes[images].astype(np.float64)  # [B, 2]
        area = random.uniform(*augmentation.crop_area, CROP_TRIES + 1)  # [B, A + 1]
        stretch = np.exp(math.log(augmentation.crop_stretch) * random.uniform(-1, 1, CROP_TRIES + 1))
        places = random.uniform(0, 1, CROP_TRIES + 1, 2) * sizes[:, None]
        points = tables.object_points[images, random.integers(tables.object_points.shape[1])]  # [B, 2]
        places[:, -1] = np.where(np.isnan(points), places[:, -1], points)
        views = crop_view((sizes[:, :1], sizes[:, 1:]), self._size, area, stretch, (places[..., 0], places[..., 1]))
        flip = random.uniform(0, 1) < augmentation.flip
        return np.where(flip[:, None, None, None], mirrored(views), views)

    def _first_crop_with_object(self, images: Tensor, crops: Tensor, motion: Tensor) -> Tensor:
        """Each clip's first crop of [B, A + 1, 2, 3] that shows an object, with the first frame's motion: [B, 2, 3]."""
        tried = crops.shape[1]
        x, y = _points((crops @ motion[:, None]).flatten(0, 1), self._size, points_per_side=_TEST_POINTS)
        found = self.store.ids(images.repeat_interleave(tried), x, y) > 0
        enough = max(self._augmentation.min_area * x.shape[1], 1)
        shows = (found.sum(1) >= enough).view(-1, tried)  # [B, A + 1]
        shows[:, -1] = True
        first = (shows * torch.arange(tried, 0, -1, device=self._device)).argmax(1)
        return crops[torch.arange(len(crops), device=self._device), first]

    def _draw_warps(self, moving: Bools, random: "_BatchRandom") -> Tensor:
        """Displacements of each pixel [B, T, h w, 2]; zeros for videos and unwarped still images."""
        augmentation = self._augmentation
        warped = ~moving & (random.uniform(0, 1) < augmentation.warp)
        reach = augmentation.warp_strength * min(self._size) * warped[:, None, None, None]
        steps = reach * random.uniform(-1, 1, self._frames, CONTROL_POINTS**2, 2)
        return warps_of(self._on_device(steps.cumsum(1)), self._size).flatten(2, 3)

    def _paste(self, frames: Tensor, ids: Tensor, rows: Ints, stills: Ints, label: int, random: "_BatchRandom") -> None:
        """Pastes one object of each still image [R] over the clips with indices `rows` [R], in place, as `label`."""
        tables = self.store.tables
        fits = tables.areas[stills] >= np.maximum(
            self._augmentation.min_area, 1 / tables.sizes[stills].prod(1, keepdims=True)
        )  # [R, L]
        counts = fits.sum(1)
        chosen = (fits.cumsum(1) > random.integers(np.maximum(counts, 1))[:, None]).argmax(1)  # [R]
        views = self._on_device(self._draw_pasted_views(tables.boxes[stills, chosen], random))  # [R, T, 2, 3]
        kept = np.flatnonzero(counts)
        if not len(kept):
            return
        place = torch.from_numpy(rows[kept]).to(self._device)
        views = views[torch.from_numpy(kept).to(self._device)]
        x, y = _points(views.flatten(0, 1), self._size)  # [R T, h w]
        numbers, labels = (
            torch.from_numpy(array[kept]).to(self._device).repeat_interleave(self._frames)
            for array in (stills, chosen + 1)
        )
        shape = (len(kept), self._frames)
        cover = self.store.cover(numbers, labels, x, y).view(*shape, -1)  # [R, T, h w]
        level = _levels(views).repeat_interleave(self._frames)
        image = self.store.colors(numbers, level, x, y).view(*shape, -1, 3)
        frames[place] = torch.lerp(frames[place], image, cover[..., None])
        ids[place] = ids[place].masked_fill(cover >= 0.5, label)

    def _draw_pasted_views(self, boxes: Matrix, random: "_BatchRandom") -> Matrix:
        """Views [R, T, 2, 3] that show boxes [R, 4] at random positions in the crop, as in `compose`."""
        augmentation, side = self._augmentation, min(self._size)
        top, left, bottom, right = boxes.T
        scale = np.maximum(bottom - top, right - left) / (random.uniform(*augmentation.paste_size) * side)  # [R]
        target = (random.uniform(*PASTED_PLACE, 2) - 0.5) * self._size[::-1]  # x, y
        path = motion_path(random.uniform(-1, 1, self._frames, 5) * motion_range(pasted_motion(augmentation), side))
        flip = random.uniform(0, 1) < augmentation.flip
        return pasted_views(scale, ((top + bottom) / 2, (left + right) / 2), target, path, flip)

    def _choose_objects(self, ids: Tensor, random: "_BatchRandom") -> tuple[Tensor, Tensor]:
        """Labels [B, T, h w] renumbered 1, 2, ... in random order, the rest 0; and the number of objects [B]."""
        labels = self.store.labels + self._augmentation.paste_most
        pixels = ids.shape[2]
        counts = torch.stack([(ids[:, 0] == label).sum(1) for label in range(1, labels + 1)], 1)  # [B, labels]
        found = counts >= max(1.0, self._augmentation.min_area * pixels)
        priority = self._on_device(random.uniform(0, 1, labels)).masked_fill(~found, 2)
        rank = priority.argsort(1).argsort(1)  # [B, labels]
        new = torch.where(found & (rank < self._max_objects), rank + 1, 0).to(torch.uint8)
        table = torch.cat([new.new_zeros(len(new), 1), new], 1)  # [B, 1 + labels], background first
        renumbered = table.gather(1, ids.flatten(1).long()).view(ids.shape)
        return renumbered, found.sum(1).clamp_max(self._max_objects)

    def _recolor(self, frames: Tensor, random: "_BatchRandom") -> Tensor:
        """Changes colors: float32 [B, T, h w, 3] in 0..255 to frames uint8 [B T, 3, h, w]."""
        matrices, shifts = color_transforms(
            self._augmentation,
            random.uniform(-1, 1, 3),
            random.uniform(-1, 1),
            random.uniform(0, 1) < self._augmentation.grey,
            random.uniform(-1, 1, self._frames, 3),
            random.uniform(-1, 1, self._frames),
        )
        images = frames.flatten(0, 1).mT.reshape(-1, 3, *self._size)  # [B T, 3, h, w]
        return recolored(images, self._on_device(matrices).flatten(0, 1), self._on_device(shifts).flatten(0, 1))

    def _on_device(self, numbers: Matrix) -> Tensor:
        return torch.from_numpy(numbers).float().to(self._device)


class _Chosen(NamedTuple):
    """Image numbers for one clip."""

    images: list[int]  # T
    moving: bool
    pasted: list[int]


class _Part(NamedTuple):
    """A part of a batch."""

    frames: Tensor  # uint8 [B, T, 3, h, w]
    ids: Tensor  # uint8 [B, T, h, w]
    objects: Tensor  # [B]
    names: list[str]


class _BatchRandom:
    """Random numbers for several clips at once; each clip has its own generator."""

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def subset(self, rows: Ints) -> "_BatchRandom":
        """The same for some of the clips."""
        return _BatchRandom([self.generators[row] for row in rows])

    def uniform(self, low: float, high: float, *shape: int) -> Matrix:
        """Uniform numbers [B, *shape]."""
        return np.stack([generator.uniform(low, high, shape) for generator in self.generators])

    def integers(self, most: int | Ints) -> Ints:
        """Integers [B] from 0 to `most` - 1; `most` may be an array [B]."""
        return np.floor(self.uniform(0, 1) * most).astype(np.int64)


def _points(
    views: Tensor, size: tuple[int, int], warps: Tensor | None = None, points_per_side: int | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of the pixels of views [N, 2, 3] in their images: x and y float32 [N, h w].

    Args:
        warps: [N, h w, 2] of `warps_of`.
        points_per_side: of a coarser grid, in place of all pixels.
    """
    grid = size if points_per_side is None else (points_per_side, points_per_side)
    x, y = (side.to(views.device) for side in offsets(grid))
    x, y = (part.expand(grid).flatten() for part in (x * (size[1] / grid[1]), y * (size[0] / grid[0])))  # [h w]
    if warps is not None:
        x, y = x + warps[..., 0], y + warps[..., 1]
    across, down = views.unbind(1)  # [N, 3]
    return _affine(across, x, y), _affine(down, x, y)


def _affine(row: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Applies one row [N, 3] of views to offsets [h w] or [N, h w]."""
    a, b, c = row[..., None].unbind(1)  # [N, 1] each
    return a * x + (b * y + c)


def _levels(views: Tensor) -> Tensor:
    """The pyramid level [B] to sample for views [B, T, 2, 3]: the base-2 logarithm of `affordable_shrink`."""
    a, b, c, d = views[..., :2].flatten(2).unbind(-1)
    least = (a * d - b * c).abs().sqrt().amin(1)
    return least.clamp(1, MAX_SHRINK).log2().floor().long()
