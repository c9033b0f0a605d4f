"""One augmented clip out of shots: crop, motion, pasted objects, colours."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors

from stm_fast.data.augmentation import Augmentation
from stm_fast.data.colour import recolour
from stm_fast.data.geometry import (
    Matrix,
    Motion,
    affordable_shrink,
    crop_view,
    draw_bends,
    draw_path,
    mirrored,
    resample,
    sampling_grid,
)
from stm_fast.data.raw import Bytes, Shot
from stm_fast.errors import InputError

AIMS = 4  # crops tried before one is centred on an object
PASTED_PLACE = (0.15, 0.85)  # of the middle of a pasted object in the crop


def compose(
    shots: Sequence[Shot],
    moving: bool,
    pasted: Sequence[Shot],
    size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Frames uint8 [T, 3, h, w] and ids uint8 [T, h, w] of a clip.

    Args:
        shots: of equal sizes; the same one T times over where it is a still.
        moving: whether the shots are a video, which moves by itself.
        pasted: stills of which one object each is put over the clip. Its id becomes one that the clip does not use.
        size: h, w.

    Raises InputError where a picture cannot be read, or shots differ in size.
    """
    _check_sizes(shots)
    picture = shots[0].ids.shape
    bends = _draw_bends(moving, len(shots), size, augmentation, generator)
    path = draw_path(motion_of(moving, augmentation), len(shots), min(size), generator)
    view = _draw_view(shots[0].ids, path[0], size, augmentation, generator)
    views = view @ path  # [T, 2, 3]
    masks = tv_tensors.Mask(_stack([shot.ids for shot in shots]))
    ids = resample(masks, sampling_grid(views, size, picture, bends))[:, 0].to(torch.uint8)  # [T, h, w]
    shrink = affordable_shrink(views)
    pictures = tv_tensors.Video(_read(shots, shrink))
    frames = resample(pictures, sampling_grid(views, size, picture, bends, shrink))  # [T, 3, h, w]
    for shot in pasted:
        _paste(shot, frames, ids, augmentation, generator)
    return recolour(frames, augmentation, generator), ids


def objects_of(ids: Tensor, share: float) -> list[int]:
    """The objects of ids [h, w] that cover at least this share of it, and one pixel."""
    counts = torch.bincount(ids.flatten(), minlength=256)[1:]
    return (torch.nonzero(counts >= max(1.0, share * ids.numel()))[:, 0] + 1).tolist()


def _check_sizes(shots: Sequence[Shot]) -> None:
    first = shots[0]
    for shot in shots[1:]:
        if shot.ids.shape != first.ids.shape:
            (height, width), (tall, wide) = shot.ids.shape, first.ids.shape
            raise InputError(f"{shot.name}: mask of {width}x{height}, expected {wide}x{tall} as {first.name}")


def motion_of(moving: bool, augmentation: Augmentation) -> Motion:
    """Of a clip's frames."""
    a = augmentation
    if moving:
        return Motion(a.video_rotation, a.video_shear, a.video_zoom, a.video_translation)
    return Motion(a.still_rotation, a.still_shear, a.still_zoom, a.still_translation)


def pasted_motion(augmentation: Augmentation) -> Motion:
    """Of a pasted object."""
    a = augmentation
    return Motion(a.still_rotation, a.still_shear, a.still_zoom, a.paste_translation)


def _draw_bends(
    moving: bool, frames: int, size: tuple[int, int], augmentation: Augmentation, generator: np.random.Generator
) -> Tensor | None:
    if moving or generator.random() >= augmentation.warp:
        return None
    return draw_bends(augmentation.warp_strength, frames, size, generator)


def _draw_view(
    ids: Bytes, motion: Matrix, size: tuple[int, int], augmentation: Augmentation, generator: np.random.Generator
) -> Matrix:
    """A view that, moved as the first frame is, shows some of an object of ids [H, W] where there is one."""
    flip = generator.random() < augmentation.flip
    view = _draw_crop(ids, None, size, augmentation, generator)
    mask = tv_tensors.Mask(torch.from_numpy(ids)[None, None])
    for _ in range(AIMS):
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


def _paste(shot: Shot, frames: Tensor, ids: Tensor, augmentation: Augmentation, generator: np.random.Generator) -> None:
    """Put one object of a still over frames [T, 3, h, w] and ids [T, h, w], on a way of its own."""
    found = objects_of(torch.from_numpy(shot.ids), augmentation.min_area)
    unused = 1 + torch.nonzero(torch.bincount(ids.flatten(), minlength=256)[1:] == 0)
    if not found or not len(unused):
        return
    size = (ids.shape[1], ids.shape[2])
    shape = shot.ids == generator.choice(found)  # [H, W]
    (top, bottom), (left, right) = _range(shape.any(1)), _range(shape.any(0))
    box = (bottom - top, right - left)
    views = _draw_pasted_views(box, len(ids), size, augmentation, generator)
    shrink = affordable_shrink(views)
    grid = sampling_grid(views, size, box, shrink=shrink)
    cut = np.s_[top:bottom, left:right]
    picture, cover = (_shrunk(_bytes(array[cut])[None], shrink) for array in (shot.read(1), shape))
    alpha = resample(cover, grid, padding="zeros")  # [T, 1, h, w]
    frames.lerp_(resample(picture, grid), alpha)
    ids[alpha[:, 0] >= 0.5] = int(unused[0])


def _shrunk(image: Tensor, shrink: int) -> Tensor:
    """Means of blocks [N, C, H, W] -> [N, C, ceil(H / shrink), ceil(W / shrink)]."""
    return F.avg_pool2d(image.float(), shrink, ceil_mode=True)


def _draw_pasted_views(
    box: tuple[int, int],
    frames: int,
    size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> Matrix:
    """Views [T, 2, 3] of a box of pixels that lies somewhere in the crop."""
    a = augmentation
    scale = max(box) / (generator.uniform(*a.paste_size) * min(size))
    middle = (generator.uniform(*PASTED_PLACE, 2) - 0.5) * size[::-1]  # x, y in pixels of the crop
    path = draw_path(pasted_motion(a), frames, min(size), generator)
    # turned about its own middle: go there first, and then on
    path[:, :2, 2] = -(path[:, :2, :2] @ (middle + path[:, :2, 2])[..., None])[..., 0]
    view = np.array([[scale, 0, box[1] / 2], [0, scale, box[0] / 2]])
    return (mirrored(view) if generator.random() < a.flip else view) @ path


def _range(used: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The first and one past the last place that is set."""
    places = np.flatnonzero(used)
    return int(places[0]), int(places[-1]) + 1


def _bytes(array: Bytes | npt.NDArray[np.bool_]) -> Tensor:
    """A picture [H, W, 3] or a mask [H, W] as uint8 [C, H, W]."""
    return torch.from_numpy(array.astype(np.uint8, copy=False)).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def _stack(arrays: Sequence[Bytes]) -> Tensor:
    """Pictures or masks as uint8 [T, C, H, W]; of a still, one instead of T."""
    distinct = {id(array): array for array in arrays}
    return torch.stack([_bytes(array) for array in (distinct.values() if len(distinct) == 1 else arrays)])


def _read(shots: Sequence[Shot], shrink: int) -> Tensor:
    """The pictures uint8 [T, 3, H / shrink, W / shrink], rounded up; of a still, one instead of T."""
    read = {id(shot): shot.read(shrink) for shot in shots}
    return _stack([read[id(shot)] for shot in shots])
