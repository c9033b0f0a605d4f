"""A gesture that the page sent, as a mask."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from stm_fast.boxes import Box
from stm_fast.clicks.regions import Region
from stm_fast.errors import InputError
from stm_fast.page.bodies import Prompt
from stm_fast.page.prompts import Prompter, Stroke, painted
from stm_fast.video.first_mask import FirstMask
from stm_fast.video.grabcut import Bools

T = TypeVar("T")


def mask_of(prompt: Prompt, image: npt.NDArray[np.uint8], shown: Bools, prompter: Prompter) -> FirstMask:
    """The mask of an object after a gesture.

    Args:
        prompt: the gesture.
        image: uint8 [H, W, 3], the frame.
        shown: bool [H, W], the mask of the object before.
        prompter: makes masks of boxes, lassos and clicks.

    Raises:
        InputError: a field of the gesture is missing, or nothing can be made of it.
    """
    if prompt.tool == "box":
        return prompter.from_region(image, Region(Box(*_given(prompt.box, "box")), ()))
    if prompt.tool == "lasso":
        return prompter.from_region(image, Region(None, tuple(_given(prompt.points, "points"))))
    if prompt.tool == "brush":
        stroke = Stroke(tuple(_given(prompt.points, "points")), _given(prompt.radius, "radius"), prompt.add)
        return FirstMask(painted(shown, stroke), True)
    if prompt.tool == "clear":
        return FirstMask(np.zeros_like(shown), True)
    point = _given(prompt.point, "point")
    if not shown.any() and not (prompt.add and prompter.clicks_alone):
        how = "draw around the object or click it" if prompter.clicks_alone else "draw around the object"
        raise InputError(f"found a click, but no mask that it corrects: {how} first")
    return FirstMask(prompter.from_click(image, shown, point, prompt.add), True)


def _given(value: T | None, name: str) -> T:
    """A field that the tool needs."""
    if not value:
        raise InputError(f"{name}: missing, expected it with this tool")
    return value
