"""Which objects are in sight: a frame without an object says nothing of how it looks, and it may come back anywhere."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

# of the pixels that an object had when it was remembered last; with fewer it is lost
_LEAST_SHARE = 0.05
_LIKELY = 0.5


class Presence:
    """How large each object was when it was in sight last, and which ones are lost.

    Attributes:
        lost: objects, by index, that the last frame did not show.
    """

    def __init__(self) -> None:
        self._pixels: list[int] = []  # of each object, in the last frame that showed it
        self.lost: list[int] = []

    def look(self, objects: Tensor, given: Collection[int]) -> None:
        """Looks at the next frame's soft masks ``[O, h, w]``; those objects whose masks are `given` are there."""
        found = (objects > _LIKELY).sum((1, 2)).tolist()
        before = self._pixels + [0] * (len(found) - len(self._pixels))
        shrunk = [now < _LEAST_SHARE * then for now, then in zip(found, before, strict=True)]
        self.lost = [index for index, gone in enumerate(shrunk) if gone and index not in given]
        self._pixels = [before[index] if index in self.lost else now for index, now in enumerate(found)]

    def keep(self, indices: Sequence[int]) -> None:
        """Forgets the other objects; these move up."""
        self._pixels = [self._pixels[index] for index in indices if index < len(self._pixels)]
        self.lost = [indices.index(index) for index in self.lost if index in indices]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {name: torch.tensor(values, dtype=torch.int64) for name, values in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Becomes the one that gave this state."""
        self._pixels, self.lost = (state[name].tolist() for name in self._state())

    def _state(self) -> dict[str, list[int]]:
        return {"pixels": self._pixels, "lost": self.lost}
