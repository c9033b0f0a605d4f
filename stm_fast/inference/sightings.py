"""What was seen of each object in each frame: found, doubtful or lost.

O objects, H x W pixels.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from stm_fast.inference.objects import LEAST_SHARE, mask_sums

State = Literal["found", "doubtful", "lost"]
STATES: tuple[State, ...] = get_args(State)

# mean probability below which a mask is doubtful
_LIKELY = 0.7
# how many times larger or smaller than in the frame before an object may be
_MOST_CHANGE = 2.0


class Sighting(NamedTuple):
    """One object in one frame."""

    object_id: int
    pixels: int
    probability: float  # the mean over these pixels; 0 without any
    score: float  # the expected J, see `object_scores`
    state: State


class Watch:
    """Compares each object with the frames before.

    An object is "lost" without pixels, or with fewer than 5 % of those that it had when it was last seen; "doubtful" if
    its pixels are improbable or their number has changed abruptly; otherwise, and in a frame for which its mask was
    given, "found". The rule finds masks that the network itself finds unlikely, not masks of a wrong object that the
    network takes for the right one.

    Args:
        earlier: what was seen in earlier frames, frame by frame.
    """

    def __init__(self, earlier: Iterable[Sighting] = ()) -> None:
        self._last: dict[int, int] = {}  # pixels in the frame before
        self._seen: dict[int, int] = {}  # pixels when an object was not lost
        for sighting in earlier:
            self._note(sighting)

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
            state: State = "found" if object_id in given else self._state(object_id, pixels, probability)
            sightings.append(Sighting(object_id, int(pixels), probability, score, state))
            self._note(sightings[-1])
        return sightings

    def _state(self, object_id: int, pixels: float, probability: float) -> State:
        if pixels == 0 or pixels < LEAST_SHARE * self._seen.get(object_id, 0):
            return "lost"
        last = self._last.get(object_id, 0) or pixels
        steady = 1 / _MOST_CHANGE <= pixels / last <= _MOST_CHANGE
        return "found" if steady and probability >= _LIKELY else "doubtful"

    def _note(self, sighting: Sighting) -> None:
        self._last[sighting.object_id] = sighting.pixels
        if sighting.state != "lost":
            self._seen[sighting.object_id] = sighting.pixels
