"""Memory for the large tensors of a CPU, used again and again.

An allocator of small things gives every large tensor another place, or gives its pages back and has them zeroed again
for the next one. Here the lowest place that is free is taken, as soon as nothing refers to what lay there: pages stay
few and warm.
"""

import math
import weakref
from bisect import insort
from collections import deque
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

# smaller tensors are left to PyTorch's allocator
LARGE_BYTES = 2**20
_SEGMENT_BYTES = 2**28  # of address space: what is never written to takes no memory
_ALIGNMENT = 4096


class _Hole(NamedTuple):
    """Bytes of a segment that are free."""

    segment: int
    first: int
    last: int  # behind the last one


class Room:
    """Places in a few large blocks of memory, which are kept as long as the process lives."""

    def __init__(self) -> None:
        self._segments: list[Tensor] = []
        self._holes: list[_Hole] = []  # in the order of their places, with something between any two
        # tensors end in any thread, and at any time: what they leave waits here
        self._left: deque[_Hole] = deque()
        self._lock = Lock()

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """As `like.new_empty`; the place of a large one on a CPU is free again when no tensor shares its memory."""
        nbytes = math.prod(shape) * like.dtype.itemsize
        if nbytes < LARGE_BYTES or like.device.type != "cpu" or torch.compiler.is_compiling():
            return like.new_empty(shape)
        with self._lock:
            while self._left:
                self._give_back(self._left.popleft())
            place = self._take(-(-nbytes // _ALIGNMENT) * _ALIGNMENT)
        # the tensor's storage holds this view of the segment, which nothing else does
        lent = self._segments[place.segment].numpy()[place.first : place.first + nbytes]
        weakref.finalize(lent, self._left.append, place).atexit = False
        return torch.frombuffer(lent, dtype=like.dtype).view(shape)

    def _take(self, nbytes: int) -> _Hole:
        fitting = (index for index, hole in enumerate(self._holes) if hole.last - hole.first >= nbytes)
        index = next(fitting, None)
        if index is None:
            size = max(nbytes, _SEGMENT_BYTES)
            self._segments.append(torch.empty(size, dtype=torch.uint8))
            self._holes.append(_Hole(len(self._segments) - 1, 0, size))
            index = len(self._holes) - 1
        segment, first, last = self._holes.pop(index)
        if first + nbytes < last:
            self._holes.insert(index, _Hole(segment, first + nbytes, last))
        return _Hole(segment, first, first + nbytes)

    def _give_back(self, hole: _Hole) -> None:
        """Joins a hole with those beside it."""
        insort(self._holes, hole)
        index = self._holes.index(hole)
        for before in (index, index - 1):
            if 0 <= before < len(self._holes) - 1:
                one, other = self._holes[before : before + 2]
                if one.segment == other.segment and one.last == other.first:
                    self._holes[before : before + 2] = [_Hole(one.segment, one.first, other.last)]


# of this process, as there is one malloc
ROOM = Room()
