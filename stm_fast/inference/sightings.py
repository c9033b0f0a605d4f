"""What was seen of each object in each frame: found, doubtful or lost.

O objects, H x W pixels.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from stm_fast.inference.objects import LEAST_SHARE, mask_sums

State = Literal["found", "doubtful", "lost"]
STATES: tuple[State, ...] = get_args(State)

# expected J below which a mask is doubtful
_LIKELY = 0.7
# how many times larger or smaller than usual an object may be
_MOST_CHANGE = 2.0
# how much the usual size may change in a frame in which the object is doubtful
_FOLLOW = 1.02


class Sighting(NamedTuple):
    """One object in one frame."""

    object_id: int  #: from 1
    pixels: int  #: of its mask
    probability: float  #: the mean over these pixels; 0 without any
    score: float  #: the expected J, see `Segmentation.scores`
    state: State  #: "found", "doubtful" or "lost"


class Watch:
    """Compares each object with the frames before.

    An object is "lost" without pixels, or with fewer than 5 % of those that it had when it was last found; "doubtful"
    with less than half or more than twice of them, or with a score below 0.7; otherwise, and in a frame for which its
    mask was given, "found". An object that stays doubtful may be right after all: what it is compared with then follows
    it by 2 % a frame.

    Args:
        areas: the pixels of objects in the frame before the first one, by id.
    """

    def __init__(self, areas: Mapping[int, int] | None = None) -> None:
        self._usual: dict[int, float] = dict(areas or {})  # pixels when an object was last found

    def see(self, prob: Tensor, mask: Tensor, ids: Sequence[int], given: Collection[int] = ()) -> list[Sighting]:
        """What is seen in the next frame, in the order of `ids`.

        Args:
            prob: ``[1 + O, H, W]`` that sums to 1 over the channels.
            mask: ``[H, W]``, the result of `label`.
            ids: of the channels after the background.
            given: the ids whose masks the user gave for this frame.
        """
        sightings = []
        for object_id, pixels, inside, total in zip(ids, *mask_sums(prob, mask, ids).tolist(), strict=True):
            probability, score = inside / max(pixels, 1), inside / max(pixels + total - inside, 1)
            state: State = "found" if object_id in given else self._state(object_id, pixels, score)
            sightings.append(Sighting(object_id, int(pixels), probability, score, state))
            self.note(sightings[-1])
        return sightings

    def note(self, sighting: Sighting) -> None:
        """Takes what another watch saw in the next frame."""
        object_id, pixels = sighting.object_id, sighting.pixels
        usual = self._usual.get(object_id, pixels)
        if sighting.state == "found":
            self._usual[object_id] = pixels
        elif sighting.state == "doubtful":
            self._usual[object_id] = min(max(pixels, usual / _FOLLOW), usual * _FOLLOW)

    def _state(self, object_id: int, pixels: float, score: float) -> State:
        usual = self._usual.get(object_id, pixels)
        if pixels == 0 or pixels < LEAST_SHARE * usual:
            return "lost"
        steady = usual / _MOST_CHANGE <= pixels <= usual * _MOST_CHANGE
        return "found" if steady and score >= _LIKELY else "doubtful"
