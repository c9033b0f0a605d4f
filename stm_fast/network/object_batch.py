"""A batch of the objects of several frames, which may have different numbers of objects."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ObjectBatch(NamedTuple):
    """P objects of B frames, at most O per frame.

    Operations on single objects use the packed form [P, ...]; operations across the objects of a frame use the padded
    form [B, O, ...].
    """

    batch_index: Tensor  # [P] int64, the frame of each object
    labels: Tensor  # [P] int64, the number of each object in its frame, from 1
    counts: Tensor  # [B] int64, the objects of each frame
    most: int  # O

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> "ObjectBatch":
        """The batch of objects 1..n of each frame, given the numbers n."""
        numbers = torch.tensor(counts)
        batch_index = torch.repeat_interleave(numbers)
        labels = torch.cat([torch.arange(1, count + 1) for count in counts])
        return cls(batch_index.to(device), labels.to(device), numbers.to(device), max(counts))

    def scatter(self, planes: Tensor) -> Tensor:
        """Pads [P, H, W] to [B, O, H, W] with zeros."""
        empty = planes.new_zeros(len(self.counts) * self.most, *planes.shape[1:])
        return empty.index_copy(0, self._position_index, planes).view(-1, self.most, *planes.shape[1:])

    def gather(self, planes: Tensor) -> Tensor:
        """Packs [B, O, H, W] to [P, H, W], the inverse of `scatter`."""
        return planes.flatten(0, 1).index_select(0, self._position_index)

    def absent(self) -> Tensor:
        """Bool [B, 1 + O], background first: the channels without an object."""
        return torch.arange(self.most + 1, device=self.counts.device) > self.counts[:, None]

    @property
    def _position_index(self) -> Tensor:
        return self.batch_index * self.most + self.labels - 1
