"""One training step: a batch of short clips through the network, as a video goes through it.

B clips of T frames, H x W pixels each; P objects of all clips together; h = H / 16, w = W / 16.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stm_fast.network import STM
from stm_fast.network.aggregation import soft_aggregation
from stm_fast.ops import MemoryRead
from stm_fast.training.affinity import affinity_loss, shares
from stm_fast.training.losses import cross_entropy, soft_iou_loss


class _Memory(NamedTuple):
    """What is remembered of the frames so far, of every object."""

    key: Tensor  # [P, Ck, t, h, w]
    value: Tensor  # [P, Cv, t, h, w]


class _Step(NamedTuple):
    """A segmented frame, and what it was compared by."""

    logits: tuple[Tensor, ...]  # of each clip [1 + O, H, W]
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
        losses = []
        owner, labels = _numbered(objects, frames.device)
        for time, step in enumerate(self._steps(frames, ids[:, 0], objects), start=1):
            losses += [self._loss(logits, ids[clip, time]) for clip, logits in enumerate(step.logits)]
            if self._affinity_weight:
                of_objects = self._affinity_loss(step, shares(ids[owner, : time + 1], labels, self.model.stride))
                losses += [self._affinity_weight * of_clip.mean() for of_clip in torch.split(of_objects, objects)]
        return torch.stack(losses).sum() / len(frames)

    def predict(self, frames: Tensor, first_ids: Tensor, objects: list[int]) -> list[Tensor]:
        """Segments the clips from the masks of their first frames.

        Args:
            frames: ``[B, T, 3, H, W]`` in [0, 1].
            first_ids: ``[B, H, W]`` int64, ids in each clip's first frame.
            objects: how many of each clip.

        Returns:
            For each clip the logits ``[T - 1, 1 + O, H, W]``, float32, of its other frames; background first.
        """
        predictions = [step.logits for step in self._steps(frames, first_ids, objects)]
        return [torch.stack(of_clip) for of_clip in zip(*predictions, strict=True)]

    def _steps(self, frames: Tensor, first_ids: Tensor, objects: list[int]) -> Iterator[_Step]:
        """The frames behind the first, one after the other."""
        _check(frames, first_ids, objects, self.model.stride)
        owner, labels = _numbered(objects, frames.device)
        masks = (first_ids[owner] == labels[:, None, None]).to(frames.dtype)  # [P, H, W]
        memory = None
        for time in range(1, frames.shape[1]):
            memory = self._memorized(frames[:, time - 1], masks, owner, objects, memory)
            step = self._segmented(frames[:, time], memory, owner, objects)
            yield step
            masks = torch.cat([of_clip.softmax(0)[1:] for of_clip in step.logits]).to(frames.dtype)  # [P, H, W]
            if self._detach_memory:
                masks = masks.detach()

    def _memorized(
        self, frame: Tensor, masks: Tensor, owner: Tensor, objects: list[int], memory: _Memory | None
    ) -> _Memory:
        """The memory with frames ``[B, 3, H, W]`` and soft masks ``[P, H, W]`` added to it."""
        others = torch.cat([(part.sum(0) - part).clamp(0, 1) for part in torch.split(masks, objects)])  # [P, H, W]
        r4 = self.model.memory_encoder(frame, masks[:, None], others[:, None], owner)
        key, value = (x[:, :, None] for x in self.model.memory_key_value(r4))  # [P, C, 1, h, w]
        if memory is None:
            return _Memory(key, value)
        return _Memory(torch.cat([memory.key, key], 2), torch.cat([memory.value, value], 2))

    def _segmented(self, frame: Tensor, memory: _Memory, owner: Tensor, objects: list[int]) -> _Step:
        """Each clip's frame ``[B, 3, H, W]``, segmented."""
        r4, r3, r2 = self.model.query_encoder(frame)
        key, value = self.model.query_key_value(r4)  # [B, Ck, h, w], [B, Cv, h, w]
        query_key = key[owner]  # [P, Ck, h, w]
        merged, _ = self._read(memory.key, memory.value, query_key, value[owner])  # [P, 2 Cv, h, w]
        both = self.model.decoder(merged[:, : self.model.value_dim], value, r3, r2, owner)  # [P, 2, H, W]
        probability = both.float().softmax(1)[:, 1]  # [P, H, W]
        logits = tuple(soft_aggregation(of_clip) for of_clip in torch.split(probability, objects))
        return _Step(logits, query_key, memory.key)

    def _affinity_loss(self, step: _Step, seen: Tensor) -> Tensor:
        """`affinity_loss` [P] of a step, from the shares [P, 3, t + 1, h, w] in the memory frames and its own."""
        return affinity_loss(step.query_key, step.memory_key, seen[:, :, :-1], seen[:, :, -1:], self._backend)

    def _loss(self, logits: Tensor, ids: Tensor) -> Tensor:
        loss = cross_entropy(logits, ids)
        return loss + self._iou_weight * soft_iou_loss(logits, ids) if self._iou_weight else loss


def _numbered(objects: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each object the index of its clip and its id in it, [P] each."""
    owner = torch.repeat_interleave(torch.tensor(objects))
    labels = torch.cat([torch.arange(1, count + 1) for count in objects])
    return owner.to(device), labels.to(device)


def _check(frames: Tensor, first_ids: Tensor, objects: list[int], stride: int) -> None:
    if frames.ndim != 5 or frames.shape[1] < 2 or frames.shape[2] != 3:
        raise ValueError(f"frames: found shape {list(frames.shape)}, expected [B, T >= 2, 3, H, W]")
    if frames.shape[-2] % stride or frames.shape[-1] % stride:
        raise ValueError(f"frames: found {list(frames.shape[-2:])} pixels, expected multiples of {stride}")
    if first_ids.shape != frames.shape[:1] + frames.shape[-2:]:
        raise ValueError(f"first_ids: found shape {list(first_ids.shape)}, expected [B, H, W] of the frames")
    if len(objects) != len(frames) or min(objects) < 1:
        raise ValueError(f"objects: found {objects}, expected one count of at least 1 for each of {len(frames)} clips")
