"""The objects of several frames in one batch, whose numbers differ from frame to frame."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ObjectBatch(NamedTuple):
    """P objects of B frames, at most O in each.

    What is computed for each object is computed for P of them; what joins the objects of a frame, for B x O, some of
    which do not exist.
    """

    batch_index: Tensor  # [P] int64, the frame of each object
    labels: Tensor  # [P] int64, its number there, from 1
    counts: Tensor  # [B] int64, the objects of each frame
    most: int  # O

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> "ObjectBatch":
        """Objects 1..n of each frame, in their order, from their numbers n."""
        numbers = torch.tensor(counts)
        batch_index = torch.repeat_interleave(numbers)
        labels = torch.cat([torch.arange(1, count + 1) for count in counts])
        return cls(batch_index.to(device), labels.to(device), numbers.to(device), max(counts))

    def scatter(self, planes: Tensor) -> Tensor:
        """[P, H, W] to [B, O, H, W], 0 where there is no object."""
        empty = planes.new_zeros(len(self.counts) * self.most, *planes.shape[1:])
        return empty.index_copy(0, self._places, planes).view(-1, self.most, *planes.shape[1:])

    def gather(self, planes: Tensor) -> Tensor:
        """[B, O, H, W] to [P, H, W], the inverse of `scatter`."""
        return planes.flatten(0, 1).index_select(0, self._places)

    def absent(self) -> Tensor:
        """Which channels of [B, 1 + O], background first, belong to no object."""
        return torch.arange(self.most + 1, device=self.counts.device) > self.counts[:, None]

    @property
    def _places(self) -> Tensor:
        return self.batch_index * self.most + self.labels - 1
