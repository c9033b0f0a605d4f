"""Augments a clip: crop, motion, pasted objects, colors."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors

from stm_fast.data.augmentation import Augmentation
from stm_fast.data.color import recolor
from stm_fast.data.geometry import (
    Matrix,
    Motion,
    affordable_shrink,
    bounding_box,
    crop_view,
    draw_path,
    draw_warps,
    mirrored,
    pasted_views,
    resample,
    sampling_grid,
)
from stm_fast.data.source import Bytes, Frame
from stm_fast.errors import InputError

CROP_TRIES = 4  # crops tried before one is centered on an object
PASTED_PLACE = (0.15, 0.85)  # range of a pasted object's center, as a share of the crop's sides


def compose(
    clip: Sequence[Frame],
    moving: bool,
    pasted: Sequence[Frame],
    size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Frames uint8 [T, 3, h, w] and ids uint8 [T, h, w] of a clip.

    Args:
        clip: T frames of one size; for a still image, the same frame T times.
        moving: whether the clip is a video.
        pasted: still images; one object of each is pasted over the clip, with an id that the clip does not use.
        size: h, w of the result.

    Raises:
        InputError: an image cannot be read, or frames differ in size.
    """
    _check_sizes(clip)
    image = clip[0].ids.shape
    warps = _draw_warps(moving, len(clip), size, augmentation, generator)
    path = draw_path(motion_of(moving, augmentation), len(clip), min(size), generator)
    view = _draw_view(clip[0].ids, path[0], size, augmentation, generator)
    views = view @ path  # [T, 2, 3]
    masks = tv_tensors.Mask(_stack([frame.ids for frame in clip]))
    ids = resample(masks, sampling_grid(views, size, image, warps))[:, 0].to(torch.uint8)  # [T, h, w]
    shrink = affordable_shrink(views)
    images = tv_tensors.Video(_read(clip, shrink))
    frames = resample(images, sampling_grid(views, size, image, warps, shrink))  # [T, 3, h, w]
    for still in pasted:
        _paste(still, frames, ids, augmentation, generator)
    return recolor(frames, augmentation, generator), ids


def objects_of(ids: Tensor, share: float) -> list[int]:
    """The objects in ids [h, w] that cover at least this share of the pixels, and at least one."""
    counts = torch.bincount(ids.flatten(), minlength=256)[1:]
    return (torch.nonzero(counts >= max(1.0, share * ids.numel()))[:, 0] + 1).tolist()


def _check_sizes(clip: Sequence[Frame]) -> None:
    first = clip[0]
    for frame in clip[1:]:
        if frame.ids.shape != first.ids.shape:
            (height, width), (tall, wide) = frame.ids.shape, first.ids.shape
            raise InputError(f"{frame.name}: mask of {width}x{height}, expected {wide}x{tall} like {first.name}")


def motion_of(moving: bool, augmentation: Augmentation) -> Motion:
    """The motion of a clip's frames."""
    a = augmentation
    if moving:
        return Motion(a.video_rotation, a.video_shear, a.video_zoom, a.video_translation)
    return Motion(a.still_rotation, a.still_shear, a.still_zoom, a.still_translation)


def pasted_motion(augmentation: Augmentation) -> Motion:
    """The motion of a pasted object."""
    a = augmentation
    return Motion(a.still_rotation, a.still_shear, a.still_zoom, a.paste_translation)


def _draw_warps(
    moving: bool, frames: int, size: tuple[int, int], augmentation: Augmentation, generator: np.random.Generator
) -> Tensor | None:
    if moving or generator.random() >= augmentation.warp:
        return None
    return draw_warps(augmentation.warp_strength, frames, size, generator)


def _draw_view(
    ids: Bytes, motion: Matrix, size: tuple[int, int], augmentation: Augmentation, generator: np.random.Generator
) -> Matrix:
    """A view that, with the motion of the first frame, shows an object of ids [H, W] if there is one."""
    flip = generator.random() < augmentation.flip
    view = _draw_crop(ids, None, size, augmentation, generator)
    mask = tv_tensors.Mask(torch.from_numpy(ids)[None, None])
    for _ in range(CROP_TRIES):
        grid = sampling_grid((view @ motion)[None], size, ids.shape)
        if objects_of(resample(mask, grid).to(torch.uint8), augmentation.min_area):
            break
        view = _draw_crop(ids, None, size, augmentation, generator)
    else:
        view = _draw_crop(ids, _some_object_point(ids, generator), size, augmentation, generator)
    return mirrored(view) if flip else view


def _draw_crop(
    ids: Bytes,
    place: tuple[float, float] | None,
    size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> Matrix:
    area = generator.uniform(*augmentation.crop_area)
    limit = math.log(augmentation.crop_stretch)
    stretch = math.exp(generator.uniform(-limit, limit))
    anywhere = generator.random(2) * ids.shape
    return crop_view(ids.shape, size, area, stretch, place or (anywhere[0], anywhere[1]))


def _some_object_point(ids: Bytes, generator: np.random.Generator) -> tuple[float, float] | None:
    points = np.flatnonzero(ids)
    if not len(points):
        return None
    y, x = divmod(int(generator.choice(points)), ids.shape[1])
    return y, x


def _paste(
    still: Frame, frames: Tensor, ids: Tensor, augmentation: Augmentation, generator: np.random.Generator
) -> None:
    """Pastes an object of a still image over frames [T, 3, h, w] and ids [T, h, w], in place, with its own motion."""
    found = objects_of(torch.from_numpy(still.ids), augmentation.min_area)
    unused = 1 + torch.nonzero(torch.bincount(ids.flatten(), minlength=256)[1:] == 0)
    if not found or not len(unused):
        return
    size = (ids.shape[1], ids.shape[2])
    shape = still.ids == generator.choice(found)  # [H, W]
    top, left, bottom, right = bounding_box(shape)
    box = (bottom - top, right - left)
    views = _draw_pasted_views(box, len(ids), size, augmentation, generator)
    shrink = affordable_shrink(views)
    grid = sampling_grid(views, size, box, shrink=shrink)
    cut = np.s_[top:bottom, left:right]
    image, cover = (
        F.avg_pool2d(_bytes(array[cut])[None].float(), shrink, ceil_mode=True) for array in (still.read(1), shape)
    )
    alpha = resample(cover, grid, padding="zeros")  # [T, 1, h, w]
    frames.lerp_(resample(image, grid), alpha)
    ids[alpha[:, 0] >= 0.5] = int(unused[0])


def _draw_pasted_views(
    box: tuple[int, int],
    frames: int,
    size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> Matrix:
    """Views [T, 2, 3] that show a box of pixels at a random position in the crop."""
    scale = max(box) / (generator.uniform(*augmentation.paste_size) * min(size))
    target = (generator.uniform(*PASTED_PLACE, 2) - 0.5) * size[::-1]  # x, y in pixels of the crop
    path = draw_path(pasted_motion(augmentation), frames, min(size), generator)
    flip = generator.random() < augmentation.flip
    return pasted_views(scale, (box[0] / 2, box[1] / 2), target, path, flip)


def _bytes(array: Bytes | npt.NDArray[np.bool_]) -> Tensor:
    """An image [H, W, 3] or mask [H, W] as uint8 [C, H, W]."""
    return torch.from_numpy(array.astype(np.uint8, copy=False)).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def _stack(arrays: Sequence[Bytes]) -> Tensor:
    """Images or masks as uint8 [T, C, H, W]; [1, C, H, W] for a still image."""
    distinct = {id(array): array for array in arrays}
    return torch.stack([_bytes(array) for array in (distinct.values() if len(distinct) == 1 else arrays)])


def _read(clip: Sequence[Frame], shrink: int) -> Tensor:
    """The images uint8 [T, 3, ceil(H / shrink), ceil(W / shrink)]; one instead of T for a still image."""
    read = {id(frame): frame.read(shrink) for frame in clip}
    return _stack([read[id(frame)] for frame in clip])
