"""Masks of boxes, lassos and clicks by a click network."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Self

import numpy as np

from stm_fast.clicks.network import ClickNetwork
from stm_fast.clicks.prompting import Click, Prompts, mask_after, mask_in
from stm_fast.clicks.regions import Point, Region, area_of, inside_of
from stm_fast.clicks.weights import FILE, load_click_network
from stm_fast.network.device import choose_device
from stm_fast.video.first_mask import LEAST_SHARE, FirstMask, check_click, require_opencv
from stm_fast.video.grabcut import Bools, Picture

# masks whose gestures are remembered, more than can be undone
_REMEMBERED = 256
_SAMPLED = 8  # every so many pixels of a frame, in each direction, tell it apart


class _Gestures(NamedTuple):
    """What led to a mask."""

    region: Region | None = None
    clicks: tuple[Click, ...] = ()
    alone: bool = False  # as in `Prompts`


class ClickPrompter:
    """Makes masks with a click network.

    The network sees all clicks on a mask, and the region before them. `from_region` and `from_click` remember them by
    the mask that they led to, so that they are known again after an undo, and not where it was changed otherwise.

    Args:
        network: ready for inference.
    """

    clicks_alone = True

    def __init__(self, network: ClickNetwork) -> None:
        self._network = network
        self._gestures: OrderedDict[bytes, _Gestures] = OrderedDict()
        self._one_at_a_time = Lock()

    @classmethod
    def load(cls, weights: str | Path | None = None, device: str = "auto") -> Self:
        """A prompter with the package's weights, or those of a file.

        Raises:
            InputError: OpenCV is missing, there is no such device, or the file is not one of a click network.
        """
        require_opencv()
        network = load_click_network(FILE if weights is None else Path(weights))
        return cls(network.to(choose_device(device)))

    def from_region(self, image: Picture, region: Region) -> FirstMask:
        size = image.shape[1], image.shape[0]
        inside = inside_of(region, size)
        with self._one_at_a_time:
            found = mask_in(self._network, image, inside)
            clear = np.count_nonzero(found) >= LEAST_SHARE * np.count_nonzero(inside)
            made = FirstMask(found, True) if clear else FirstMask(area_of(region, size), False)
            self._remember(image, made.mask, _Gestures(region))
        return made

    def from_click(self, image: Picture, shown: Bools, point: Point, add: bool) -> Bools:
        with self._one_at_a_time:
            # an empty mask may be that of any object
            known = self._gestures.get(_key(image, shown), _Gestures()) if shown.any() else _Gestures(alone=True)
            gestures = known._replace(clicks=(*known.clicks, Click(point, add)))
            found = self._after(image, shown, gestures)
            if not np.array_equal(found, shown):
                self._remember(image, found, gestures)
        return found

    def from_clicks(self, image: Picture, shown: Bools, region: Region | None, clicks: Sequence[Click]) -> Bools:
        """A mask [H, W] after clicks, one after the other.

        Args:
            image: uint8 [H, W, 3] RGB.
            shown: the mask [H, W] before them.
            region: that `shown` was made of, if it was.
            clicks: all clicks on `shown`.

        Raises:
            InputError: a click outside the image.
        """
        alone = not shown.any()
        with self._one_at_a_time:
            for count in range(1, len(clicks) + 1):
                shown = self._after(image, shown, _Gestures(region, tuple(clicks[:count]), alone))
        return shown

    def _after(self, image: Picture, shown: Bools, gestures: _Gestures) -> Bools:
        """The mask [H, W] after the last click."""
        size = image.shape[1], image.shape[0]
        check_click(gestures.clicks[-1].point, size)
        area = None if gestures.region is None else inside_of(gestures.region, size)
        return mask_after(self._network, image, shown, Prompts(area, gestures.clicks, gestures.alone))

    def _remember(self, image: Picture, mask: Bools, gestures: _Gestures) -> None:
        if not mask.any():
            return
        key = _key(image, mask)
        self._gestures[key] = gestures
        self._gestures.move_to_end(key)
        if len(self._gestures) > _REMEMBERED:
            self._gestures.popitem(last=False)


def _key(image: Picture, mask: Bools) -> bytes:
    """Identifies a mask [H, W] of a frame [H, W, 3]."""
    digest = blake2b(np.packbits(mask).tobytes(), digest_size=16)
    digest.update(image[::_SAMPLED, ::_SAMPLED].tobytes())
    return digest.digest()
