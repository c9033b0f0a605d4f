"""Object ids as the user gave them, their channels inside (0 is the background), and which objects are in sight.

O objects, H x W pixels.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.ops import probabilities

MAX_ID = 255  # what a palette PNG can hold
# of the pixels that an object had when it was remembered last; with fewer it is lost
_LEAST_SHARE = 0.05
_LIKELY = 0.5


def split_mask(mask: Tensor, objects: Sequence[int] | None = None) -> tuple[list[int], Tensor]:
    """The ids that a mask gives and one plane for each.

    Args:
        mask: ``[H, W]`` object ids, 0 the background; or ``[O, H, W]`` one plane an object, in [0, 1]. Where planes
            overlap to more than 1 they share the pixel in proportion.
        objects: the ids that the mask speaks of. Default for ids: those that occur. Needed for planes.

    Returns:
        ids, and planes ``[O, H, W]`` float32.

    Raises:
        InputError: no objects, ids outside 1..255, twice the same, not an id for each plane, or planes outside [0, 1].
    """
    if objects is not None:
        _check_ids(objects)
    if mask.ndim == 3:
        if objects is None or len(objects) != mask.shape[0]:
            raise InputError(
                f"mask: found planes {tuple(mask.shape)} and objects {objects}, expected an id for each plane"
            )
        ids, planes = list(objects), _shared_out(mask.float())
    elif mask.ndim == 2 and not mask.is_floating_point():
        ids = [int(i) for i in torch.unique(mask).tolist() if i] if objects is None else list(objects)
        planes = torch.stack([mask == i for i in ids]).float() if ids else mask.new_zeros(0, *mask.shape).float()
    else:
        found = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise InputError(f"mask: found {found}, expected integer ids [H, W] or planes [O, H, W]")
    if not ids:
        raise InputError("mask: found no object (every pixel is 0), expected at least one id above 0")
    _check_ids(ids)
    return ids, planes


def _check_ids(ids: Sequence[int]) -> None:
    if len(set(ids)) != len(ids) or not all(1 <= i <= MAX_ID for i in ids):
        raise InputError(f"mask: found object ids {list(ids)}, expected different ids from 1 to {MAX_ID}")


def _shared_out(planes: Tensor) -> Tensor:
    """Planes [O, H, W] in [0, 1] whose sum is at most 1 in every pixel."""
    if planes.numel() and not (planes.min() >= 0 and planes.max() <= 1):
        raise InputError(f"mask: found planes from {planes.min():g} to {planes.max():g}, expected values in [0, 1]")
    return planes / planes.sum(0).clamp(min=1)


def impose(prob: Tensor, known: Sequence[int], given: Sequence[int], planes: Tensor) -> Tensor:
    """Puts given masks over predicted probabilities: where a mask was given, it is right.

    Args:
        prob: ``[1 + len(known), H, W]``, predicted.
        known: the ids of prob's channels 1, 2, ...
        given: the ids of the planes; those that are not known get channels behind the known ones.
        planes: ``[len(given), H, W]`` in [0, 1].

    Returns:
        ``[1 + objects, H, W]`` that sums to 1 over the channels.
    """
    ids = list(known) + [i for i in given if i not in known]
    objects = prob.new_zeros(len(ids), *prob.shape[1:])  # [O, H, W]
    objects[: len(known)] = prob[1:]
    objects *= 1 - planes.sum(0).clamp(0, 1)
    for object_id, plane in zip(given, planes, strict=True):
        objects[ids.index(object_id)] = plane
    background = (1 - objects.sum(0)).clamp(0, 1)
    return torch.cat([background[None], objects])


def object_scores(prob: Tensor, mask: Tensor, ids: Sequence[int]) -> Tensor:
    """How sure the network is of each object's mask, ``[O]`` float32 in [0, 1]: the J that it expects of it.

    That is J between the mask and its own probabilities, ``sum_mask p / (|mask| + sum_elsewhere p)``: 1 where every
    pixel is certain, 0 where the object has no pixel.

    Args:
        prob: ``[1 + O, H, W]`` that sums to 1 over the channels.
        mask: ``[H, W]``, what `label` makes of it.
        ids: of the channels behind the background.
    """
    scores = prob.new_zeros(len(ids))
    for index, (plane, object_id) in enumerate(zip(prob[1:], ids, strict=True)):
        own = mask == object_id
        inside = (plane * own).sum()
        scores[index] = inside / (own.sum() + plane.sum() - inside).clamp(min=1)
    return scores


def label(prob: Tensor, ids: Sequence[int]) -> Tensor:
    """The most likely object of each pixel: prob ``[1 + O, H, W]`` -> the user's ids ``[H, W]`` uint8."""
    table = torch.tensor([0, *ids], dtype=torch.uint8, device=prob.device)
    if prob.device.type == "cpu" and prob.dtype == torch.float32 and not probabilities.absent_reasons():
        return probabilities.most_likely(prob, table)  # argmax takes longer than all else that follows the decoder
    return table[prob.argmax(0)]


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
