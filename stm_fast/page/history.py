"""Undo and redo of a project: what the frames, objects and marks were before each edit."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from stm_fast.inference.sightings import Sighting
from stm_fast.page.objects import PageObject

MOST_EDITS = 100
MOST_BYTES = 64 * 2**20

Result = TypeVar("Result")


class FrameState(NamedTuple):
    """One frame of a project: the content of its files, None for one that does not exist, and what tracking saw."""

    given: bytes | None
    mask: bytes | None
    seen: tuple[Sighting, ...]


class Snapshot(NamedTuple):
    """What an edit may change: some frames, the objects, the marks.

    Attributes:
        given_only: of the frames, only the given masks change, whatever is found there by then.
    """

    frames: Mapping[int, FrameState]
    objects: tuple[PageObject, ...]
    marks: range
    given_only: bool = False

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(len(file or b"") for state in self.frames.values() for file in (state.given, state.mask))


class History:
    """The last edits, at most MOST_EDITS and, unless a single one is larger, MOST_BYTES."""

    def __init__(self) -> None:
        self.past: deque[Snapshot] = deque()
        self.future: deque[Snapshot] = deque()

    def add(self, before: Snapshot) -> None:
        """Remembers what an edit changed; what was undone before cannot be redone any more."""
        self.future.clear()
        self.past.append(before)
        self._trim()

    def swap(self, back: bool, exchange: Callable[[Snapshot], tuple[Snapshot, Result]]) -> Result | None:
        """Undoes or redoes one edit; None if there is none.

        Args:
            back: whether to undo.
            exchange: puts a snapshot in place, and returns what was there before, and a result.
        """
        source, target = (self.past, self.future) if back else (self.future, self.past)
        if not source:
            return None
        before, result = exchange(source[-1])
        source.pop()
        target.append(before)
        self._trim()
        return result

    def _trim(self) -> None:
        sizes = sum(one.size for one in (*self.past, *self.future))
        while len(self.past) + len(self.future) > 1 and (
            len(self.past) + len(self.future) > MOST_EDITS or sizes > MOST_BYTES
        ):
            sizes -= (self.past or self.future).popleft().size
