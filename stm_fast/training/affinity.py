"""A loss on the affinity itself: masks are read from the memory in place of values.

P objects, t memory frames of h x w rows, H x W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stm_fast.ops import memory_read

# smallest share whose logarithm is taken
_LEAST = 1e-4


def shares(ids: Tensor, labels: Tensor, stride: int) -> Tensor:
    """The shares of object, other objects and background in each row's pixels: ``[P, 3, t, h, w]``.

    Args:
        ids: ``[P, t, H, W]`` int64, ids of the objects' clips.
        labels: ``[P]``, the id of each object.
        stride: pixels between two rows.
    """
    mine = ids == labels[:, None, None, None]
    planes = torch.stack([mine, (ids > 0) & ~mine, ids == 0], 1).float()  # [P, 3, t, H, W]
    return F.avg_pool3d(planes, (1, stride, stride))


def affinity_loss(query_key: Tensor, memory_key: Tensor, found: Tensor, expected: Tensor, backend: str) -> Tensor:
    """Cross-entropy of the masks that the affinity copies from the memory into the frame.

    An affinity trained to copy colors follows objects (Vondrick et al., ECCV 2018); here it copies the masks
    themselves. All classes that occur have the same weight.

    Args:
        query_key: ``[P, Ck, h, w]``.
        memory_key: ``[P, Ck, t, h, w]``.
        found: ``[P, 3, t, h, w]``, `shares` of the memory frames.
        expected: ``[P, 3, 1, h, w]``, `shares` of the frame.
        backend: as in :func:`stm_fast.ops.memory_read`.

    Returns:
        ``[P]``, the mean over the classes that are in the frame.
    """
    query, memory, value = (x.flatten(2).mT for x in (query_key, memory_key, found))
    copied, _ = memory_read(query, memory, value.to(memory.dtype), return_lse=True, backend=backend)  # [P, M, 3]
    true = expected.flatten(2).mT  # [P, M, 3]
    wrong = -(true * copied.float().clamp_min(_LEAST).log()).sum(1)  # [P, 3]
    rows = true.sum(1)  # [P, 3]
    return (wrong / rows.clamp_min(1)).sum(1) / (rows > 0).sum(1)
