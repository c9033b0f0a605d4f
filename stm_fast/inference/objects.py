"""Object ids of the user, their channels (0 is the background), and which objects are visible.

O objects, H x W pixels.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.ops import probabilities

MAX_ID = 255  # what a palette PNG can hold
# of the pixels that an object had when it was last visible; with fewer it is lost
LEAST_SHARE = 0.05
_LIKELY = 0.5


def split_mask(mask: Tensor, objects: Sequence[int] | None = None) -> tuple[list[int], Tensor]:
    """The ids in a mask, and a plane for each.

    Args:
        mask: ``[H, W]`` object ids, 0 the background; or ``[O, H, W]`` a plane in [0, 1] for each object. Pixels where
            planes sum to more than 1 are normalized.
        objects: the ids that the mask gives; required with planes, by default those that occur.

    Returns:
        ids, and planes ``[O, H, W]`` float32.

    Raises:
        InputError: no objects, ids outside 1..255, duplicate ids, not one id per plane, or planes outside [0, 1].
    """
    if objects is not None:
        _check_ids(objects)
    if mask.ndim == 3:
        if objects is None or len(objects) != mask.shape[0]:
            raise InputError(
                f"mask: found planes {tuple(mask.shape)} and objects {objects}, expected an id for each plane"
            )
        ids, planes = list(objects), _normalized(mask.float())
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


def _normalized(planes: Tensor) -> Tensor:
    """Planes [O, H, W] in [0, 1], scaled down where they sum to more than 1."""
    if planes.numel() and not (planes.min() >= 0 and planes.max() <= 1):
        raise InputError(f"mask: found planes from {planes.min():g} to {planes.max():g}, expected values in [0, 1]")
    return planes / planes.sum(0).clamp(min=1)


def impose(prob: Tensor, known: Sequence[int], given: Sequence[int], planes: Tensor) -> Tensor:
    """Replaces predicted probabilities by given masks.

    Args:
        prob: ``[1 + len(known), H, W]``, predicted.
        known: the ids of prob's channels 1, 2, ...
        given: the ids of the planes; new ones get channels after the known ones.
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
    """The confidence in each object's mask, ``[O]`` float32 in [0, 1]: the expected J.

    It is J between the mask and the probabilities, ``sum_mask p / (|mask| + sum_elsewhere p)``: 1 if every pixel is
    certain, 0 if the object has no pixel.

    Args:
        prob: ``[1 + O, H, W]`` that sums to 1 over the channels.
        mask: ``[H, W]``, the result of `label`.
        ids: of the channels after the background.
    """
    pixels, inside, total = mask_sums(prob, mask, ids).unbind()
    return (inside / (pixels + total - inside).clamp(min=1)).float()


def mask_sums(prob: Tensor, mask: Tensor, ids: Sequence[int]) -> Tensor:
    """For each object its pixels, the sum of its probability over them, and that over the frame: ``[3, O]`` float64.

    The arguments are those of `object_scores`.
    """
    sums = prob.new_zeros(3, len(ids), dtype=torch.float64)
    for index, (plane, object_id) in enumerate(zip(prob[1:], ids, strict=True)):
        own = mask == object_id
        sums[:, index] = torch.stack([own.sum().double(), (plane * own).sum(), plane.sum()])
    return sums


def label(prob: Tensor, ids: Sequence[int]) -> Tensor:
    """The most likely object of each pixel: prob ``[1 + O, H, W]`` -> the user's ids ``[H, W]`` uint8."""
    table = torch.tensor([0, *ids], dtype=torch.uint8, device=prob.device)
    if prob.device.type == "cpu" and prob.dtype == torch.float32 and not probabilities.absent_reasons():
        return probabilities.most_likely(prob, table)  # argmax takes longer than everything else after the decoder
    return table[prob.argmax(0)]


class Presence:
    """Tracks the size of each object when it was last visible, and which objects are lost.

    Attributes:
        lost: indices of the objects that were not visible in the last frame.
    """

    def __init__(self) -> None:
        self._pixels: list[int] = []  # of each object, when it was last visible
        self.lost: list[int] = []

    def update(self, objects: Tensor, given: Collection[int]) -> None:
        """Updates with the next frame's soft masks ``[O, h, w]``; objects whose masks are `given` count as visible."""
        found = (objects > _LIKELY).sum((1, 2)).tolist()
        before = self._pixels + [0] * (len(found) - len(self._pixels))
        shrunk = [now < LEAST_SHARE * then for now, then in zip(found, before, strict=True)]
        self.lost = [index for index, gone in enumerate(shrunk) if gone and index not in given]
        self._pixels = [before[index] if index in self.lost else now for index, now in enumerate(found)]

    def keep(self, indices: Sequence[int]) -> None:
        """Keeps only these objects, renumbered in order."""
        self._pixels = [self._pixels[index] for index in indices if index < len(self._pixels)]
        self.lost = [indices.index(index) for index in self.lost if index in indices]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {name: torch.tensor(values, dtype=torch.int64) for name, values in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state."""
        self._pixels, self.lost = (state[name].tolist() for name in self._state())

    def _state(self) -> dict[str, list[int]]:
        return {"pixels": self._pixels, "lost": self.lost}
