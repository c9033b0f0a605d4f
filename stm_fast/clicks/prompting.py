"""Masks of regions and clicks by a `ClickNetwork`: pure functions of a frame, the mask so far, and the prompt.

H x W pixels; places x, y are in pixels from the upper left corner of the frame.
"""

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from stm_fast.clicks.network import PROMPTS, STRIDE, ClickNetwork
from stm_fast.clicks.regions import Point
from stm_fast.network.efficientnet import MEAN
from stm_fast.video.click import connected_change, corrected
from stm_fast.video.first_mask import bounds
from stm_fast.video.grabcut import Bools, Part, Picture

# the longer side of what the network sees, and the radius of a click there
SIDE, CLICK_RADIUS = 320, 5
# around the object, as a share of its longer side and in pixels
_MARGIN, _MIN_MARGIN = 0.35, 6
# a mask that fills less of the frame is looked at once more, closer
_CLOSER = 0.5
# a click that would take away more of a mask is a graph cut near it instead, which takes away less; but what a click
# alone has found is often far too large
_MOST_TAKEN = 0.12
# of the least correction, in pixels, and as a share of the square root of the masks' area
_MOST_RADIUS, _RADIUS = 2, 0.15


class Click(NamedTuple):
    """Where a user clicks, in pixels, and whether the object is missing there."""

    point: Point
    add: bool


class Prompts(NamedTuple):
    """What a user did for the mask of an object.

    Attributes:
        area: the area [H, W] that was enclosed, if one was.
        clicks: those since.
        alone: whether the first of them was made where no mask was shown, and found the object.
    """

    area: Bools | None
    clicks: tuple[Click, ...] = ()
    alone: bool = False


def mask_in(network: ClickNetwork, image: Picture, area: Bools) -> Bools:
    """The mask [H, W] of the object in an area, which may be empty; nothing is outside the area.

    Args:
        image: uint8 [H, W, 3] RGB.
        area: bool [H, W], not empty: what a lasso or a box encloses.
    """
    view = _view_around(bounds(area), area.shape)
    return _seen(network, image, view, np.zeros_like(area), Prompts(area)) & area


def mask_after(network: ClickNetwork, image: Picture, shown: Bools, prompts: Prompts) -> Bools:
    """A mask [H, W] with what is missing at the last click, or without what is too much there.

    Args:
        image: uint8 [H, W, 3] RGB.
        shown: bool [H, W], the mask so far. If it is empty, the object at the click is found.
        prompts: with at least one click, the last one inside the frame. Those before, and the area, led to `shown`.
    """
    click = prompts.clicks[-1]
    if not shown.any():
        return _mask_at(network, image, click) if click.add else shown.copy()
    view = _view_around(_extended(bounds(shown), click.point), shown.shape)
    after = merged(shown, _seen(network, image, view, shown, prompts), click)
    taken = np.count_nonzero(shown) - np.count_nonzero(after)
    if taken > _MOST_TAKEN * np.count_nonzero(shown) and not prompts.alone:
        return corrected(image, shown, click.point, click.add)
    return after


def _mask_at(network: ClickNetwork, image: Picture, click: Click) -> Bools:
    """The mask [H, W] of the object at a click: first in the whole frame, and then closer."""
    nothing = np.zeros(image.shape[:2], bool)
    prompts = Prompts(None, (click,))
    view = _scaled_part(0, 0, image.shape[1], image.shape[0])
    found = merged(nothing, _seen(network, image, view, nothing, prompts), click)
    closer = _view_around(_extended(bounds(found), click.point), found.shape)
    if closer.scale * _CLOSER < view.scale:
        return found
    return merged(nothing, _seen(network, image, closer, nothing, prompts), click)


def _view_around(inside: tuple[int, int, int, int], size: tuple[int, ...]) -> Part:
    """The part of a frame of H x W that shows an object and its surroundings."""
    left, top, right, bottom = inside
    margin = max(_MIN_MARGIN, round(_MARGIN * max(right - left, bottom - top)))
    return _scaled_part(
        max(left - margin, 0), max(top - margin, 0), min(right + margin, size[1]), min(bottom + margin, size[0])
    )


def _scaled_part(left: int, top: int, right: int, bottom: int) -> Part:
    return Part(left, top, right, bottom, SIDE / max(right - left, bottom - top))


def _extended(inside: tuple[int, int, int, int], point: Point) -> tuple[int, int, int, int]:
    """The smallest rectangle around another one and a pixel."""
    x, y = map(int, point)
    left, top, right, bottom = inside
    return min(left, x), min(top, y), max(right, x + 1), max(bottom, y + 1)


def _seen(network: ClickNetwork, image: Picture, view: Part, shown: Bools, prompts: Prompts) -> Bools:
    """The mask [H, W] that the network answers with, empty outside the view."""
    planes = planes_of(_scaled(shown, view), _in_view(prompts, view))
    answer = _answer(network, image_tensor(view.scaled(image)[None]), torch.from_numpy(planes)[None].float())
    size = view.bottom - view.top, view.right - view.left
    logits = F.interpolate(answer, size, mode="bilinear", align_corners=False)
    found = np.zeros(shown.shape, bool)
    found[view.slices] = (logits[0, 0] > 0).cpu().numpy()
    return found


def _scaled(mask: Bools, view: Part) -> Bools:
    """A mask [H, W] as a view shows it."""
    return view.scaled_labels(mask[view.slices].astype(np.uint8)) > 0


def _in_view(prompts: Prompts, view: Part) -> Prompts:
    """Prompts as a view shows them, some of them perhaps outside."""
    area = None if prompts.area is None else _scaled(prompts.area, view)
    places = [
        tuple((one - start) * view.scale for one, start in zip(click.point, view, strict=False))
        for click in prompts.clicks
    ]
    return Prompts(area, tuple(Click((x, y), click.add) for (x, y), click in zip(places, prompts.clicks, strict=True)))


def planes_of(shown: Bools, prompts: Prompts) -> npt.NDArray[np.uint8]:
    """The prompts of a network, 0 or 1, uint8 [4, h, w], for a mask of this size."""
    cv2: Any = import_module("cv2")  # optional
    planes = np.zeros((PROMPTS, *shown.shape), np.uint8)
    planes[1] = shown
    if prompts.area is not None:
        planes[0] = prompts.area
    for (x, y), add in prompts.clicks:
        cv2.circle(planes[2 if add else 3], (int(np.floor(x)), int(np.floor(y))), CLICK_RADIUS, 1, cv2.FILLED)
    return planes


def image_tensor(images: Picture) -> Tensor:
    """Images uint8 [B, H, W, 3] as float32 [B, 3, H, W] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def merged(shown: Bools, found: Bools, click: Click) -> Bools:
    """Of the difference between two masks [H, W], only the region around a click is taken over."""
    # a small mask is not all that was clicked
    radius = min(_MOST_RADIUS, int(_RADIUS * np.sqrt(np.count_nonzero(shown | found))))
    changed = connected_change(found & ~shown if click.add else shown & ~found, click.point, radius)
    return shown | changed if click.add else shown & ~changed


@torch.inference_mode()
def _answer(network: ClickNetwork, frame: Tensor, planes: Tensor) -> Tensor:
    """Logits [1, 1, h, w] for a frame [1, 3, h, w] of any size."""
    height, width = frame.shape[-2:]
    padding = (0, -width % STRIDE, 0, -height % STRIDE)
    device = network.predict.weight.device
    # beyond the frame, the trunk sees zeros
    frame, planes = F.pad(frame, padding, value=MEAN).to(device), F.pad(planes, padding).to(device)
    logits: Tensor = network(frame, planes)
    return logits[..., :height, :width]
