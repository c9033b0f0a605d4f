"""Training examples of the click network: views of objects of still images and of frames of videos.

A view is S x S pixels, `VIEW_SIDE`; in use, the network sees `stm_fast.clicks.prompting.SIDE`. Everything is drawn
from one NumPy generator.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.data.source import ClipSource
from stm_fast.video import object_ids
from stm_fast.video.first_mask import bounds
from stm_fast.video.grabcut import Bools, Picture

VIEW_SIDE = 256
_LEAST_OF_IMAGE = 150  # pixels of an object in its image
_LEAST_OF_VIEW = 120
_GRAY = (127, 127, 127)  # beyond the image; zero after normalization
# the side of a view relative to the longer side of its object: mostly all of it, sometimes a part, or far more
_SPREADS, _SPREAD_SHARES = ((1.15, 2.2), (0.4, 1.0), (2.0, 5.0)), (0.73, 0.12, 0.15)
_LEAST_SIDE = 12  # pixels of the image
_STRETCH, _OFF_CENTER = 0.2, 0.7
_TURN, _TURN_SHARE = 0.12, 0.5  # radians
# an object of another image is pasted over a view: how often, how large, how often it becomes the object
_PASTE, _PASTED, _PASTED_IS_OBJECT = 0.3, (1.2, 4.0), 0.35
_LEAST_PASTED, _LEAST_PASTED_OBJECT = 200, 600
_EVERY = 2  # frames of a video


class Item(NamedTuple):
    """An object in an image uint8 [H, W, 3] with ids uint8 [H, W]."""

    image: Picture
    ids: npt.NDArray[np.uint8]
    id: int


class View(NamedTuple):
    """A view uint8 [S, S, 3], and bool [S, S] of its object and of the other ones."""

    image: Picture
    own: Bools
    others: Bools


class Pool(NamedTuple):
    """Items that are drawn with this weight: first a group, then one of its items."""

    weight: float
    groups: list[list[Item]]


def pool_of(source: ClipSource, weight: float, *, one_group_per_clip: bool, without: Sequence[int] = ()) -> Pool:
    """All objects of a source that are not too small; of videos, those of every second frame.

    Args:
        one_group_per_clip: so that long sequences are not drawn more often.
        without: clips that are left out.
    """
    clips = [index for index in range(len(source)) if index not in without]
    groups = [list(_items_of(source, index)) for index in clips]
    if not one_group_per_clip:
        groups = [[item for group in groups for item in group]]
    return Pool(weight, [group for group in groups if group])


def _items_of(source: ClipSource, index: int) -> Iterator[Item]:
    for time in range(0, source.length(index), _EVERY):
        frame = source.frame(index, time)
        image = frame.read(1)
        for object_id in object_ids(frame.ids):
            if np.count_nonzero(frame.ids == object_id) >= _LEAST_OF_IMAGE:
                yield Item(image, frame.ids, object_id)


class Views:
    """Draws views.

    Args:
        pools: of items.
        generator: all random numbers come from it.
    """

    def __init__(self, pools: Sequence[Pool], generator: np.random.Generator) -> None:
        self._pools = pools
        weights = np.array([pool.weight for pool in pools])
        self._weights = weights / weights.sum()
        self._random = generator

    def draw(self) -> View:
        """A view whose object is visible."""
        while True:
            spread = _SPREADS[self._random.choice(len(_SPREADS), p=_SPREAD_SHARES)]
            view = self._seen(self._item(), spread)
            if self._random.random() < _PASTE:
                view = self._with_another(view)
            if np.count_nonzero(view.own) >= _LEAST_OF_VIEW:
                return view._replace(image=self._recolored(view.image))

    def _item(self) -> Item:
        groups = self._pools[self._random.choice(len(self._pools), p=self._weights)].groups
        group = groups[self._random.integers(len(groups))]
        return group[self._random.integers(len(group))]

    def _seen(self, item: Item, spread: tuple[float, float], shift: float = 0.0) -> View:
        """A random view of an object, moved by at most a share of the view."""
        own = item.ids == item.id
        motion = self._motion(bounds(own), own.shape, spread)
        motion[:, 2] += self._random.uniform(-shift, shift, 2) * VIEW_SIDE
        image, seen, others = (
            warped(plane, motion) for plane in (item.image, _plane(own), _plane((item.ids > 0) & ~own))
        )
        return View(image, seen > 0.5, others > 0.5)

    def _motion(
        self, box: tuple[int, int, int, int], size: tuple[int, ...], spread: tuple[float, float]
    ) -> npt.NDArray[np.float64]:
        """The affine map [2, 3] from an image of H x W to a view of the object in a box."""
        left, top, right, bottom = box
        longer = max(right - left, bottom - top)
        side = max(longer, _LEAST_SIDE) * np.exp(self._random.uniform(*np.log(spread)))
        scale = VIEW_SIDE / side * np.exp(self._random.uniform(-_STRETCH, _STRETCH, 2))
        slack = _OFF_CENTER * abs(side - longer) / 2
        center = np.array([left + right, top + bottom]) / 2 + self._random.uniform(-slack, slack, 2)
        # nothing beyond the image is shown if the image is large enough
        beyond = np.minimum(side, size[::-1]) / 2
        center = np.clip(center, beyond, size[::-1] - beyond)
        turn = self._random.normal(0, _TURN) if self._random.random() < _TURN_SHARE else 0.0
        flip = -1 if self._random.random() < 0.5 else 1
        cos, sin = np.cos(turn), np.sin(turn)
        linear = np.array([[flip * cos, -sin], [flip * sin, cos]]) * scale
        return np.column_stack([linear, VIEW_SIDE / 2 - linear @ center])

    def _with_another(self, view: View) -> View:
        """A view with an object of another image in front, which may become its object."""
        cv2: Any = import_module("cv2")  # optional
        pasted = self._seen(self._item(), _PASTED, shift=0.5)
        if np.count_nonzero(pasted.own) < _LEAST_PASTED:
            return view
        image = self._recolored(pasted.image) if self._random.random() < 0.5 else pasted.image
        edge = self._random.uniform(0.4, 1.2)
        opacity = cv2.GaussianBlur(_plane(pasted.own), (0, 0), edge)[..., None]
        image = (view.image * (1 - opacity) + image * opacity).astype(np.uint8)
        large = np.count_nonzero(pasted.own) >= _LEAST_PASTED_OBJECT
        if large and self._random.random() < _PASTED_IS_OBJECT:
            return View(image, pasted.own, (view.own | view.others) & ~pasted.own)
        return View(image, view.own & ~pasted.own, view.others | pasted.own)

    def _recolored(self, image: Picture) -> Picture:
        """An image in other light, sometimes gray, blurred or noisy."""
        random, x = self._random, image.astype(np.float32)
        if random.random() < 0.8:
            x *= 1 + random.uniform(-0.25, 0.25)
            x = (x - x.mean()) * (1 + random.uniform(-0.3, 0.3)) + x.mean()
            gray = x.mean(2, keepdims=True)
            x = gray + (x - gray) * (1 + random.uniform(-0.4, 0.4))
            x += random.normal(0, 6, 3).astype(np.float32)
        if random.random() < 0.05:
            x = np.repeat(x.mean(2, keepdims=True), 3, 2)
        if random.random() < 0.2:
            x = _blurred(x, np.exp(random.uniform(np.log(1.3), np.log(5))))
        if random.random() < 0.2:
            x += random.standard_normal(x.shape, np.float32) * random.uniform(1, 8)
        return np.clip(x, 0, 255).astype(np.uint8)


def warped(plane: npt.NDArray[Any], motion: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """An image [H, W, 3] or a mask [H, W] as a view."""
    cv2: Any = import_module("cv2")  # optional
    beyond = _GRAY if plane.ndim == 3 else 0
    found: npt.NDArray[Any] = cv2.warpAffine(
        plane, motion, (VIEW_SIDE, VIEW_SIDE), flags=cv2.INTER_LINEAR, borderValue=beyond
    )
    return found


def _plane(mask: Bools) -> npt.NDArray[np.float32]:
    return mask.astype(np.float32)


def _blurred(image: npt.NDArray[np.float32], factor: float) -> npt.NDArray[np.float32]:
    """An image as if it had been enlarged by a factor."""
    cv2: Any = import_module("cv2")  # optional
    side = int(VIEW_SIDE / factor)
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    large: npt.NDArray[np.float32] = cv2.resize(small, (VIEW_SIDE, VIEW_SIDE), interpolation=cv2.INTER_CUBIC)
    return large
