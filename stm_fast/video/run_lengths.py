"""Masks as run lengths, packed into text as in COCO and YouTube-VIS files.

From the fourth on, a length is stored as its difference from the one two before. A number is split into groups of 5
bits, the lowest first, up to the one whose top bit is the sign of the rest; a group is a character, which also says
whether another one follows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_BITS = 5  # of a number in a character
_FIRST = ord("0")  # the character of 0


def encode(own: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] as ``{"size": [H, W], "counts": text}``, the same text as pycocotools writes.

    The text packs the lengths of runs of background and object pixels, alternating, column by column.
    """
    column_major = own.ravel(order="F")
    changes = np.flatnonzero(column_major[1:] != column_major[:-1]) + 1
    # the first run is of background, even if it is empty
    starts = np.concatenate([np.zeros(1 + bool(column_major[0]), np.int64), changes, [own.size]])
    return {"size": list(own.shape), "counts": _packed(np.diff(starts))}


def unpacked(text: bytes) -> Counts:
    """The lengths in a text that was checked: each number ends within it, and has at most 30 bits."""
    characters = np.frombuffer(text, np.uint8).astype(np.int64) - _FIRST
    bits = characters & 31
    ends = np.flatnonzero(characters == bits)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    places = np.arange(len(bits)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat(bits << _BITS * places, starts)
    numbers -= (bits[ends] >> 4) << _BITS * sizes  # two's complement
    for parity in (1, 2):
        numbers[parity::2] = numbers[parity::2].cumsum()
    return numbers


def _packed(lengths: Counts) -> str:
    numbers = lengths.copy()
    numbers[3:] -= lengths[1:-2]
    columns, unfinished = [], np.ones(len(numbers), bool)
    while unfinished.any():
        bits = numbers & 31
        numbers >>= _BITS
        more = numbers != np.where(bits & 16, -1, 0)
        columns.append(np.where(unfinished, _FIRST + bits + 32 * more, 0))
        unfinished &= more
    characters = np.stack(columns, axis=1).astype(np.uint8)  # 0 after the end of a number
    return characters[characters > 0].tobytes().decode("ascii")
