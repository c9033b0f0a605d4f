"""STM's inference as it is published, written plainly in PyTorch: what every speed of the engine is measured against.

After Oh et al., ICCV 2019, section 3, and the way its released code spends memory and time: eleven slots whatever the
number of objects, a memory that is concatenated anew for every frame, every object's own copy of what depends on the
frame alone, and the whole affinity.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stm_fast.network import STM, QueryFeatures
from stm_fast.network.aggregation import soft_aggregation
from stm_fast.network.padding import pad_to_multiple, unpad

SLOTS = 11  # background and ten objects


class PublishedLoop:
    """The masks of a video, one frame after the other, from the objects of its first frame.

    Args:
        model: the network, as trained.
        every: every N-th frame stays in the memory.
    """

    def __init__(self, model: STM, every: int = 5) -> None:
        self._model = model.eval()
        self._every = every
        self._frame_count = 0
        self._previous: tuple[Tensor, Tensor] | None = None  # frame [1, 3, H, W], probabilities [SLOTS, H, W]
        self._objects = 0
        self.keys: Tensor | None = None  # [SLOTS, Ck, T, h, w]
        self.values: Tensor | None = None  # [SLOTS, Cv, T, h, w]

    @torch.inference_mode()
    def step(self, frame: Tensor, planes: Tensor | None = None) -> Tensor:
        """Segments the next frame.

        Args:
            frame: ``[3, H, W]`` float in [0, 1], on the model's device.
            planes: ``[O, H, W]`` the objects' masks, with the first frame.

        Returns:
            ``[SLOTS, H, W]`` probabilities; channel 0 is the background, those beyond the objects are next to 0.
        """
        if planes is not None:
            self._objects = len(planes)
            prob = frame.new_zeros(SLOTS, *frame.shape[1:])
            prob[1 : 1 + self._objects] = planes
            prob[0] = 1 - planes.sum(0)
        else:
            assert self._previous is not None
            keys, values = self._with_previous(*self._previous)
            prob = self._segment(frame[None], keys, values).softmax(0)
            if (self._frame_count - 1) % self._every == 0:
                self.keys, self.values = keys, values
        self._previous = frame[None], prob
        self._frame_count += 1
        return prob

    def _with_previous(self, frame: Tensor, prob: Tensor) -> tuple[Tensor, Tensor]:
        """The memory and the previous frame: a copy of all of it."""
        key, value = self._memorize(frame, prob)
        if self.keys is None or self.values is None:
            return key, value
        return torch.cat([self.keys, key], dim=2), torch.cat([self.values, value], dim=2)

    def _memorize(self, frame: Tensor, prob: Tensor) -> tuple[Tensor, Tensor]:
        frame, _ = pad_to_multiple(frame, self._model.stride)
        masks, _ = pad_to_multiple(prob[1 : 1 + self._objects], self._model.stride)  # [O, H', W']
        others = (masks.sum(0) - masks).clamp(0, 1)
        frames = torch.cat([frame] * self._objects)  # [O, 3, H', W']
        key, value = self._model.memory_of(frames, masks[:, None], others[:, None])  # [O, C, h, w]
        return self._padded(key), self._padded(value)

    def _padded(self, tensor: Tensor) -> Tensor:
        """Into the objects' slots: ``[SLOTS, C, 1, h, w]``."""
        slots = tensor.new_zeros(SLOTS, tensor.shape[1], 1, *tensor.shape[2:])
        slots[1 : 1 + self._objects, :, 0] = tensor
        return slots

    def _segment(self, frame: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Logits ``[SLOTS, H, W]``."""
        of_frame = self._model.encode_query(frame)
        key, value, r3, r2 = (x.expand(self._objects, -1, -1, -1) for x in of_frame[:4])
        read = self._read(keys[1 : 1 + self._objects], values[1 : 1 + self._objects], key)
        probability = self._model.probability_of(read, QueryFeatures(key, value, r3, r2))  # [O, H', W']
        slots = probability.new_zeros(SLOTS - 1, *probability.shape[1:])
        slots[: self._objects] = probability
        return unpad(soft_aggregation(slots), of_frame.pads)

    def _read(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        """Matrix product, softmax over the memory, matrix product: ``[O, Cv, h, w]``."""
        objects, width, _, height, breadth = keys.shape
        affinity = torch.bmm(keys.flatten(2).mT, query.flatten(2)) / math.sqrt(width)  # [O, N, M]
        affinity = F.softmax(affinity, dim=1)
        return torch.bmm(values.flatten(2), affinity).view(objects, -1, height, breadth)
