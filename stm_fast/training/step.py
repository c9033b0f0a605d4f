"""The loss of a batch of short clips, which pass through the network like videos.

B clips of T frames, H x W pixels each, with at most O objects; P objects of all clips; h = H / 16, w = W / 16.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm_fast.network import STM, ObjectBatch, QueryFeatures
from stm_fast.ops import MemoryRead
from stm_fast.training.losses import affinity_loss, shares, soft_iou_loss


class _Memory(NamedTuple):
    """Memory of the frames so far, of every object."""

    key: Tensor  # [P, Ck, t, h, w]
    value: Tensor  # [P, Cv, t, h, w]


class _Step(NamedTuple):
    """A segmented frame, with query and memory keys."""

    logits: Tensor  # [B, 1 + O, H, W], -inf where there is no object
    query_key: Tensor  # [P, Ck, h, w]
    memory_key: Tensor  # [P, Ck, t, h, w]


class ClipLoss(nn.Module):
    """The loss of a batch of clips; its parameters are the network's.

    Frame 1 is memorized with its mask, and frame 2 is segmented; frame 2 is memorized with its soft prediction, and
    frame 3 is segmented with both in memory, and so on. The loss is the sum of the cross-entropies of all predictions,
    and gradients flow through the memory (STM, "Two-stage Training"; details that the paper omits follow its author).

    Args:
        model: the network; height and width of frames must be multiples of its stride.
        iou_weight: weight of `soft_iou_loss`; that of the cross-entropy is 1.
        affinity_weight: weight of `affinity_loss`.
        detach_memory: memorizes predictions without gradient, as one published recipe does in its second stage.
        backend: of the memory read, as in :func:`stm_fast.memory_read`.
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
        """The mean loss of the clips, a scalar.

        Args:
            frames: ``[B, T, 3, H, W]`` in [0, 1], T at least 2.
            ids: ``[B, T, H, W]`` int64, 0 the background, 1..O the objects of each clip.
            objects: number of objects of each clip, at least 1.

        Raises:
            ValueError: other shapes or numbers.
        """
        _check(frames, ids[:, 0], objects, self.model.stride)
        losses = []
        batch = ObjectBatch.of(objects, frames.device)
        for time, step in enumerate(self._steps(frames, ids[:, 0], batch), start=1):
            losses.append(self._loss(step.logits, ids[:, time], batch.counts))
            if self._affinity_weight:
                seen = shares(ids[batch.batch_index, : time + 1], batch.labels, self.model.stride)
                of_objects = self._affinity_loss(step, seen) / batch.counts[batch.batch_index]  # [P]
                losses.append(self._affinity_weight * of_objects.sum() / len(frames))
        return torch.stack(losses).sum()

    def predict(self, frames: Tensor, first_ids: Tensor, objects: list[int]) -> list[Tensor]:
        """Segments the clips from the masks of their first frames.

        Args:
            frames: ``[B, T, 3, H, W]`` in [0, 1].
            first_ids: ``[B, H, W]`` int64, ids in each clip's first frame.
            objects: number of objects of each clip, at least 1.

        Returns:
            For each clip, the logits ``[T - 1, 1 + O, H, W]`` of the other frames, float32, background first.

        Raises:
            ValueError: other shapes or numbers.
        """
        _check(frames, first_ids, objects, self.model.stride)
        steps = self._steps(frames, first_ids, ObjectBatch.of(objects, frames.device))
        logits = torch.stack([step.logits for step in steps], 1)  # [B, T - 1, 1 + O, H, W]
        return [of_clip[:, : 1 + count] for of_clip, count in zip(logits, objects, strict=True)]

    def _steps(self, frames: Tensor, first_ids: Tensor, objects: ObjectBatch) -> Iterator[_Step]:
        """Segments the frames after the first, in order."""
        masks = (first_ids[objects.batch_index] == objects.labels[:, None, None]).to(frames.dtype)  # [P, H, W]
        memory, known = None, None
        for time in range(1, frames.shape[1]):
            made = self.model.memorize(frames[:, time - 1], masks, known, objects)
            memory = _extended(memory, *(x[:, :, None] for x in made))
            features = self.model.encode_query(frames[:, time])
            step, known = self._segmented(features, memory, objects), (features.key, features.value)
            yield step
            masks = objects.gather(step.logits.softmax(1)[:, 1:]).to(frames.dtype)  # [P, H, W]
            if self._detach_memory:
                masks = masks.detach()

    def _segmented(self, features: QueryFeatures, memory: _Memory, objects: ObjectBatch) -> _Step:
        """Segments a frame of each clip, given its features."""
        query_key, query_value = (x[objects.batch_index] for x in (features.key, features.value))  # [P, C, h, w]
        merged, _ = self._read(memory.key, memory.value, query_key, query_value)  # [P, Cv + .., h, w]
        logits = self.model.decode(merged[:, : self.model.value_dim], features, objects)
        return _Step(logits, query_key, memory.key)

    def _affinity_loss(self, step: _Step, seen: Tensor) -> Tensor:
        """`affinity_loss` [P] of a step, given the shares [P, 3, t + 1, h, w] of the memory frames and its frame."""
        return affinity_loss(step.query_key, step.memory_key, seen[:, :, :-1], seen[:, :, -1:], self._backend)

    def _loss(self, logits: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, ids)
        return loss + self._iou_weight * soft_iou_loss(logits, ids, counts) if self._iou_weight else loss


def _extended(memory: _Memory | None, key: Tensor, value: Tensor) -> _Memory:
    """Appends a frame [P, C, 1, h, w] to the memory."""
    if memory is None:
        return _Memory(key, value)
    return _Memory(torch.cat([memory.key, key], 2), torch.cat([memory.value, value], 2))


def _check(frames: Tensor, first_ids: Tensor, objects: list[int], stride: int) -> None:
    if frames.ndim != 5 or frames.shape[1] < 2 or frames.shape[2] != 3:
        raise ValueError(f"frames: found shape {list(frames.shape)}, expected [B, T >= 2, 3, H, W]")
    if frames.shape[-2] % stride or frames.shape[-1] % stride:
        raise ValueError(f"frames: found {list(frames.shape[-2:])} pixels, expected multiples of {stride}")
    if first_ids.shape != frames.shape[:1] + frames.shape[-2:]:
        raise ValueError(f"first_ids: found shape {list(first_ids.shape)}, expected [B, H, W] of the frames")
    if len(objects) != len(frames) or min(objects) < 1:
        raise ValueError(f"objects: found {objects}, expected one count of at least 1 for each of {len(frames)} clips")
