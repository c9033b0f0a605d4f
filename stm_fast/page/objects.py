"""The objects of a project."""

from collections.abc import Iterable
from typing import NamedTuple

from stm_fast.errors import InputError, shown
from stm_fast.video.overlay_colors import overlay_colors

LARGEST_ID = 254  # 255 next to other ids is void
LONGEST_NAME = 100


class PageObject(NamedTuple):
    """An object that a person gave.

    Attributes:
        id: from 1 to 254; never used again in the same project.
        name: for people.
        color: "#rrggbb".
    """

    id: int
    name: str
    color: str


def new_object(number: int, name: str | None) -> PageObject:
    """An object with the usual color of its id, and a name of its own or the usual one. Raises InputError."""
    color = overlay_colors()[number].tobytes().hex()
    return PageObject(number, f"object {number}" if name is None else _checked_name(name), f"#{color}")


def changed_object(old: PageObject, name: str | None, color: str | None) -> PageObject:
    """An object with another name or color, where they are given. Raises InputError for ones that cannot be used."""
    if name is not None:
        old = old._replace(name=_checked_name(name))
    return old if color is None else old._replace(color=_checked_color(color))


def palette_of(objects: Iterable[PageObject]) -> bytes:
    """RGB colors from id 0 to 255; ids that are no object have their usual ones."""
    colors = overlay_colors()
    for one in objects:
        colors[one.id] = list(bytes.fromhex(one.color.removeprefix("#")))
    return colors.tobytes()


def _checked_name(name: str) -> str:
    name = name.strip()
    if not (name and len(name) <= LONGEST_NAME and name.isprintable()):
        raise InputError(f"name: found {shown(name)}, expected 1 to {LONGEST_NAME} printable characters")
    return name


def _checked_color(color: str) -> str:
    digits = color.lower().removeprefix("#")
    if len(color) != 7 or len(digits) != 6 or not set(digits) <= set("0123456789abcdef"):
        raise InputError(f"color: found {shown(color)}, expected #rrggbb")
    return f"#{digits}"
