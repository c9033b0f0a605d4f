"""One training step: a batch of short clips through the network, as a video goes through it.

B clips of T frames, H x W pixels each, with at most O objects; P objects of all clips together; h = H / 16, w = W / 16.
What is done for every object is done for P of them; what joins the objects of a clip, for B x O, some of which are not
there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stm_fast.network import STM, QueryFeatures
from stm_fast.network.aggregation import soft_aggregation
from stm_fast.ops import MemoryRead
from stm_fast.training.affinity import affinity_loss, shares
from stm_fast.training.losses import cross_entropy, soft_iou_loss


class _Memory(NamedTuple):
    """What is remembered of the frames so far, of every object."""

    key: Tensor  # [P, Ck, t, h, w]
    value: Tensor  # [P, Cv, t, h, w]


class _Objects(NamedTuple):
    """Which objects there are."""

    owner: Tensor  # [P], the clip of each
    labels: Tensor  # [P], its id there, from 1
    counts: Tensor  # [B], how many each clip has
    most: int  # O

    def spread(self, planes: Tensor) -> Tensor:
        """[P, H, W] to [B, O, H, W], 0 where there is no object."""
        none = planes.new_zeros(len(self.counts) * self.most, *planes.shape[1:])
        return none.index_copy(0, self._places, planes).view(-1, self.most, *planes.shape[1:])

    def gathered(self, planes: Tensor) -> Tensor:
        """The other way."""
        return planes.flatten(0, 1).index_select(0, self._places)

    @property
    def _places(self) -> Tensor:
        return self.owner * self.most + self.labels - 1


class _Step(NamedTuple):
    """A segmented frame, and what it was compared by."""

    logits: Tensor  # [B, 1 + O, H, W], -inf where there is no object
    query_key: Tensor  # [P, Ck, h, w]
    memory_key: Tensor  # [P, Ck, t, h, w]


class ClipLoss(nn.Module):
    """The loss of a batch of clips; its parameters are the network's.

    Frame 1 is memorised with its mask and frame 2 segmented; frame 2 is memorised with its soft prediction, frame 3
    segmented with both in memory, and so on. The loss is taken on all predictions, and its gradient goes through
    the memory (STM, "Two-stage Training"; how the author answered where the paper is silent).

    Args:
        model: frames go in as they come, so their sides are multiples of its stride.
        iou_weight: of `soft_iou_loss` beside the cross-entropy.
        affinity_weight: of `affinity_loss` beside it.
        detach_memory: predictions are memorised without gradient, as one published training does in its second stage.
        backend: of the memory read, as in :func:`stm_fast.ops.memory_read`.
    """

    def __init__(
        self,
        model: STM,
        *,
        iou_weight: float = 0.0,
        affinity_weight: float = 0.0,
        detach_memory: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.model = model
        self._iou_weight = iou_weight
        self._affinity_weight = affinity_weight
        self._backend = backend
        self._detach_memory = detach_memory
        self._read = MemoryRead(backend=backend)

    def forward(self, frames: Tensor, ids: Tensor, objects: list[int]) -> Tensor:
        """Mean loss of the clips, a scalar.

        Args:
            frames: ``[B, T, 3, H, W]`` in [0, 1], T at least 2.
            ids: ``[B, T, H, W]`` int64, 0 the background, 1..O the objects of each clip.
            objects: O of each clip, at least 1.
        """
        _check(frames, ids[:, 0], objects, self.model.stride)
        losses = []
        there = _numbered(objects, frames.device)
        for time, step in enumerate(self._steps(frames, ids[:, 0], there), start=1):
            losses.append(self._loss(step.logits, ids[:, time], there.counts))
            if self._affinity_weight:
                seen = shares(ids[there.owner, : time + 1], there.labels, self.model.stride)
                of_objects = self._affinity_loss(step, seen) / there.counts[there.owner]  # [P]
                losses.append(self._affinity_weight * of_objects.sum() / len(frames))
        return torch.stack(losses).sum()

    def predict(self, frames: Tensor, first_ids: Tensor, objects: list[int]) -> list[Tensor]:
        """Segments the clips from the masks of their first frames.

        Args:
            frames: ``[B, T, 3, H, W]`` in [0, 1].
            first_ids: ``[B, H, W]`` int64, ids in each clip's first frame.
            objects: how many of each clip.

        Returns:
            For each clip the logits ``[T - 1, 1 + O, H, W]``, float32, of its other frames; background first.
        """
        _check(frames, first_ids, objects, self.model.stride)
        steps = self._steps(frames, first_ids, _numbered(objects, frames.device))
        logits = torch.stack([step.logits for step in steps], 1)  # [B, T - 1, 1 + O, H, W]
        return [of_clip[:, : 1 + count] for of_clip, count in zip(logits, objects, strict=True)]

    def _steps(self, frames: Tensor, first_ids: Tensor, objects: _Objects) -> Iterator[_Step]:
        """The frames behind the first, one after the other."""
        masks = (first_ids[objects.owner] == objects.labels[:, None, None]).to(frames.dtype)  # [P, H, W]
        memory, known = None, None
        for time in range(1, frames.shape[1]):
            memory = self._memorized(frames[:, time - 1], known, masks, objects, memory)
            features = self.model.features_of(frames[:, time])
            step, known = self._segmented(features, memory, objects), (features.key, features.value)
            yield step
            masks = objects.gathered(step.logits.softmax(1)[:, 1:]).to(frames.dtype)  # [P, H, W]
            if self._detach_memory:
                masks = masks.detach()

    def _memorized(
        self,
        frame: Tensor,
        known: tuple[Tensor, Tensor] | None,
        masks: Tensor,
        objects: _Objects,
        memory: _Memory | None,
    ) -> _Memory:
        """The memory with frames ``[B, 3, H, W]``, of which `known` is known, and soft masks ``[P, H, W]``."""
        others = (objects.spread(masks).sum(1)[objects.owner] - masks).clamp(0, 1)  # [P, H, W]
        made = self.model.memory_of(frame, masks[:, None], others[:, None], objects.owner, known)
        key, value = (x[:, :, None] for x in made)  # [P, C, 1, h, w]
        if memory is None:
            return _Memory(key, value)
        return _Memory(torch.cat([memory.key, key], 2), torch.cat([memory.value, value], 2))

    def _segmented(self, features: QueryFeatures, memory: _Memory, objects: _Objects) -> _Step:
        """Each clip's frame, of which B are known, segmented."""
        query_key, query_value = (x[objects.owner] for x in (features.key, features.value))  # [P, C, h, w]
        merged, _ = self._read(memory.key, memory.value, query_key, query_value)  # [P, Cv + .., h, w]
        read = merged[:, : self.model.value_dim]
        probability = self.model.probability_of(read, features, objects.owner)  # [P, H, W]
        logits = soft_aggregation(objects.spread(probability).transpose(0, 1)).transpose(0, 1)  # [B, 1 + O, H, W]
        absent = torch.arange(objects.most + 1, device=logits.device) > objects.counts[:, None]  # [B, 1 + O]
        return _Step(logits.masked_fill(absent[..., None, None], -torch.inf), query_key, memory.key)

    def _affinity_loss(self, step: _Step, seen: Tensor) -> Tensor:
        """`affinity_loss` [P] of a step, from the shares [P, 3, t + 1, h, w] in the memory frames and its own."""
        return affinity_loss(step.query_key, step.memory_key, seen[:, :, :-1], seen[:, :, -1:], self._backend)

    def _loss(self, logits: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        loss = cross_entropy(logits, ids)
        return loss + self._iou_weight * soft_iou_loss(logits, ids, counts) if self._iou_weight else loss


def _numbered(objects: list[int], device: torch.device) -> _Objects:
    counts = torch.tensor(objects)
    owner = torch.repeat_interleave(counts)
    labels = torch.cat([torch.arange(1, count + 1) for count in objects])
    return _Objects(owner.to(device), labels.to(device), counts.to(device), max(objects))


def _check(frames: Tensor, first_ids: Tensor, objects: list[int], stride: int) -> None:
    if frames.ndim != 5 or frames.shape[1] < 2 or frames.shape[2] != 3:
        raise ValueError(f"frames: found shape {list(frames.shape)}, expected [B, T >= 2, 3, H, W]")
    if frames.shape[-2] % stride or frames.shape[-1] % stride:
        raise ValueError(f"frames: found {list(frames.shape[-2:])} pixels, expected multiples of {stride}")
    if first_ids.shape != frames.shape[:1] + frames.shape[-2:]:
        raise ValueError(f"first_ids: found shape {list(first_ids.shape)}, expected [B, H, W] of the frames")
    if len(objects) != len(frames) or min(objects) < 1:
        raise ValueError(f"objects: found {objects}, expected one count of at least 1 for each of {len(frames)} clips")
