"""Losses of the masks of B clips of at most O objects; the logits of objects that a clip lacks are -inf."""

import torch
from torch import Tensor
from torch.nn import functional as F

# keeps the soft intersection over union of an absent object defined
_EMPTY = 1.0


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean over the pixels of the aggregated objects' cross-entropy (STM, "Two-stage Training"), and over the clips.

    Args:
        logits: ``[B, 1 + O, H, W]`` float32, as `STM.decode` gives them; background first.
        ids: ``[B, H, W]`` int64, 0 the background, 1..O the objects.
    """
    return F.cross_entropy(logits, ids)


def soft_iou_loss(logits: Tensor, ids: Tensor, objects: Tensor) -> Tensor:
    """One minus the mean of the objects' soft intersection over union, which weighs small objects like large ones.

    Some published recipes add it to the cross-entropy; STM does not.

    Args:
        logits: ``[B, 1 + O, H, W]`` float32; background first.
        ids: ``[B, H, W]`` int64, 0 the background, 1..O the objects.
        objects: ``[B]``, how many each clip has.

    Returns:
        The mean over the clips.
    """
    predicted = logits.softmax(1)[:, 1:]  # [B, O, H, W]
    labels = torch.arange(1, predicted.shape[1] + 1, device=ids.device)
    true = ids[:, None] == labels[:, None, None]  # [B, O, H, W]
    both = (predicted * true).sum((2, 3))
    either = predicted.sum((2, 3)) + true.sum((2, 3)) - both
    # an absent object adds 0
    wrong = 1 - (both + _EMPTY) / (either + _EMPTY)  # [B, O]
    return (wrong.sum(1) / objects).mean()
