"""GrabCut (Rother et al., SIGGRAPH 2004) of OpenCV on a part of an image: always the same for the same input."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stm_fast.errors import InputError, reason_of
from stm_fast.versions import how_to_install

Bools = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]
# of the background and of the object
ColorModels = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

# OpenCV's random numbers and number of threads belong to the process
_one_at_a_time = Lock()
_OF_MODEL = (1, 65)
_FLAT = 0.5  # the share of equal neighbors in a picture


def require_opencv() -> None:
    """Raises InputError, which says how to install it, if OpenCV cannot be imported."""
    try:
        import_module("cv2")
    except ImportError as error:  # also of a library that it needs, such as libGL
        why = f"masks of boxes, lassos and clicks need OpenCV, which cannot be imported ({reason_of(error)})"
        raise InputError(f"{why}: {how_to_install('boxes')}") from error


class Part(NamedTuple):
    """A part of an image: its first column and row, the first ones after it, and the scale at which it is processed."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float

    @property
    def slices(self) -> tuple[slice, slice]:
        """Of an array [H, W]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def scaled_size(self) -> tuple[int, int]:
        """Width and height after scaling."""
        width, height = self.right - self.left, self.bottom - self.top
        return max(1, round(width * self.scale)), max(1, round(height * self.scale))

    def scaled(self, image: Picture) -> Picture:
        """This part of an image uint8 [H, W, 3], scaled: [h, w, 3]."""
        cv2: Any = import_module("cv2")  # optional
        how = cv2.INTER_CUBIC if self.scale > 1 else cv2.INTER_AREA
        cut_out = np.ascontiguousarray(image[self.slices])
        return cv2.resize(cut_out, self.scaled_size, interpolation=how)  # type: ignore[no-any-return]

    def scaled_labels(self, labels: Picture) -> Picture:
        """Labels uint8 of this part, scaled: [h, w]."""
        cv2: Any = import_module("cv2")  # optional
        return cv2.resize(labels, self.scaled_size, interpolation=cv2.INTER_NEAREST)  # type: ignore[no-any-return]

    def restored(self, found: Bools) -> Bools:
        """What was found in the scaled part, at the size of the part."""
        cv2: Any = import_module("cv2")  # optional
        size = self.right - self.left, self.bottom - self.top
        larger: Bools = cv2.resize(found.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
        return larger


def grabcut(picture: Picture, guess: Picture, rounds: int) -> None:
    """Improves a guess in place, with color models that it learns; if one of the two classes is empty, nothing changes.

    Args:
        picture: uint8 [h, w, 3] RGB.
        guess: uint8 [h, w] of OpenCV's classes GC_BGD, GC_FGD, GC_PR_BGD and GC_PR_FGD.
    """
    cv2: Any = import_module("cv2")  # optional
    foreground = is_object(guess)
    if foreground.all() or not foreground.any():
        return
    with _alone(cv2):
        models = np.zeros(_OF_MODEL), np.zeros(_OF_MODEL)
        colors = np.ascontiguousarray(_varied_if_flat(picture)[..., ::-1])
        cv2.grabCut(colors, guess, None, *models, rounds, cv2.GC_INIT_WITH_MASK)


def _varied_if_flat(picture: Picture) -> Picture:
    """The picture, by one step of color brighter or darker here and there if most neighbors are equal.

    Where all edges cost the same, as in drawings and black frames, OpenCV would search for seconds.
    """
    equal = (picture[:, 1:] == picture[:, :-1]).all(-1)
    if np.count_nonzero(equal) <= _FLAT * equal.size:
        return picture
    steps = np.random.default_rng(0).integers(-1, 2, picture.shape)
    varied: Picture = np.clip(picture + steps, 0, 255).astype(np.uint8)
    return varied


def color_models(background: Picture, foreground: Picture) -> ColorModels:
    """The color models of pixels, each uint8 [n, 3], at least five of both."""
    cv2: Any = import_module("cv2")  # optional
    pixels = np.ascontiguousarray(np.concatenate([background, foreground])[:, None])
    classes = np.full((len(pixels), 1), cv2.GC_BGD, np.uint8)
    classes[len(background) :] = cv2.GC_FGD
    models = np.zeros(_OF_MODEL), np.zeros(_OF_MODEL)
    with _alone(cv2):
        cv2.grabCut(pixels, classes, None, *models, 0, cv2.GC_INIT_WITH_MASK)
    return models


def graph_cut(picture: Picture, guess: Picture, models: ColorModels) -> None:
    """Improves a guess in place by one cut with these color models; `picture` and `guess` as in `grabcut`."""
    cv2: Any = import_module("cv2")  # optional
    with _alone(cv2):
        cv2.grabCut(picture, guess, None, *models, 1, cv2.GC_EVAL_FREEZE_MODEL)


def is_object(guess: Picture) -> Bools:
    """Where a guess says so, certainly or probably."""
    cv2: Any = import_module("cv2")  # optional
    return (guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD)  # type: ignore[no-any-return]


@contextmanager
def _alone(cv2: Any) -> Iterator[None]:
    with _one_at_a_time:
        threads = cv2.getNumThreads()
        cv2.setRNGSeed(0)
        cv2.setNumThreads(1)  # the sums of several depend on their number
        try:
            yield
        finally:
            cv2.setNumThreads(threads)
