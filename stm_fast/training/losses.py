"""A loss on the masks of B clips of at most O objects; the logits of objects that a clip does not have are -inf."""

import torch
from torch import Tensor

# added to intersection and union, so that the ratio of an absent object is 1
_SMOOTHING = 1.0


def soft_iou_loss(logits: Tensor, ids: Tensor, objects: Tensor) -> Tensor:
    """One minus the mean soft intersection over union of the objects, which weights small and large objects alike.

    Some published recipes add it to the cross-entropy; STM does not.

    Args:
        logits: ``[B, 1 + O, H, W]`` float32; background first.
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
