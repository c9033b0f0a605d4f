"""How wrong the masks of a clip are."""

import torch
from torch import Tensor
from torch.nn import functional as F

# keeps the soft intersection over union of an object that is nowhere defined
_EMPTY = 1.0


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean over the pixels of the aggregated objects' cross-entropy (STM, "Two-stage Training").

    Args:
        logits: ``[1 + O, H, W]`` float32, as `STM.decode` gives them; background first.
        ids: ``[H, W]`` int64, 0 the background, 1..O the objects.
    """
    return F.cross_entropy(logits[None], ids[None])


def soft_iou_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """One minus the mean of the objects' soft intersection over union, which small objects weigh in as large ones do.

    Published trainings add it to the cross-entropy or do not; STM itself does not.

    Args:
        logits: ``[1 + O, H, W]`` float32; background first.
        ids: ``[H, W]`` int64, 0 the background, 1..O the objects.
    """
    objects = len(logits) - 1
    predicted = logits.softmax(0)[1:]  # [O, H, W]
    true = ids == torch.arange(1, objects + 1, device=ids.device)[:, None, None]  # [O, H, W]
    both = (predicted * true).sum((1, 2))
    either = (predicted + true - predicted * true).sum((1, 2))
    return 1 - ((both + _EMPTY) / (either + _EMPTY)).mean()
