"""Losses on masks and on the affinity, by which masks are read from the memory in place of values.

B clips of at most O objects, P objects in all; t memory frames of h x w rows, H x W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stm_fast.ops import memory_read

# added to intersection and union, so that the ratio of an absent object is 1
_SMOOTHING = 1.0
# smallest share in a logarithm
_LEAST = 1e-4


def soft_iou_loss(logits: Tensor, ids: Tensor, objects: Tensor) -> Tensor:
    """One minus the mean soft intersection over union of the objects, which weights small and large objects alike.

    Some published recipes add it to the cross-entropy; STM does not.

    Args:
        logits: ``[B, 1 + O, H, W]`` float32; background first; -inf for objects that a clip does not have.
        ids: ``[B, H, W]`` int64, 0 the background, 1..O the objects.
        objects: ``[B]``, number of objects of each clip.

    Returns:
        The mean over clips, a scalar.
    """
    predicted = logits.softmax(1)[:, 1:]  # [B, O, H, W]
    labels = torch.arange(1, predicted.shape[1] + 1, device=ids.device)
    true = ids[:, None] == labels[:, None, None]  # [B, O, H, W]
    intersection = (predicted * true).sum((2, 3))
    union = predicted.sum((2, 3)) + true.sum((2, 3)) - intersection
    # an absent object adds 0
    losses = 1 - (intersection + _SMOOTHING) / (union + _SMOOTHING)  # [B, O]
    return (losses.sum(1) / objects).mean()


def shares(ids: Tensor, labels: Tensor, stride: int) -> Tensor:
    """The shares of object, other objects and background in the pixels of each row: float32 ``[P, 3, t, h, w]``.

    Args:
        ids: ``[P, t, H, W]`` int64, the ids of each object's clip.
        labels: ``[P]`` int64, the id of each object.
        stride: pixels per row, in each direction.
    """
    mine = ids == labels[:, None, None, None]
    planes = torch.stack([mine, (ids > 0) & ~mine, ids == 0], 1).float()  # [P, 3, t, H, W]
    return F.avg_pool3d(planes, (1, stride, stride))


def affinity_loss(query_key: Tensor, memory_key: Tensor, found: Tensor, expected: Tensor, backend: str) -> Tensor:
    """Cross-entropy of the masks that the affinity copies from the memory to the frame.

    Trained to copy colors, an affinity learns to track objects (Vondrick et al., ECCV 2018); here it copies masks. All
    classes in the frame have the same weight.

    Args:
        query_key: ``[P, Ck, h, w]``.
        memory_key: ``[P, Ck, t, h, w]``.
        found: ``[P, 3, t, h, w]``, `shares` in the memory frames.
        expected: ``[P, 3, 1, h, w]``, `shares` in the frame.
        backend: as in :func:`stm_fast.memory_read`.

    Returns:
        ``[P]``, the mean over the classes in the frame.
    """
    query, memory, value = (x.flatten(2).mT for x in (query_key, memory_key, found))
    copied, _ = memory_read(query, memory, value.to(memory.dtype), return_lse=True, backend=backend)  # [P, M, 3]
    true = expected.flatten(2).mT  # [P, M, 3]
    losses = -(true * copied.float().clamp_min(_LEAST).log()).sum(1)  # [P, 3]
    rows = true.sum(1)  # [P, 3]
    return (losses / rows.clamp_min(1)).sum(1) / (rows > 0).sum(1)
