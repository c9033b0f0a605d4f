"""Soft aggregation: one distribution over background and objects out of one probability per object."""

import torch
from torch import Tensor

from stm_fast.network.padding import Pads
from stm_fast.ops import probabilities

EPSILON = 1e-7


def soft_aggregation(probability: Tensor) -> Tensor:
    """Joins the objects' independent probabilities (STM, "Multi-object Segmentation").

    The background is where no object is: `p_0 = prod_o (1 - p_o)`. Each channel's logit is `log(p / (1 - p))`, so the
    softmax over the channels shares every pixel out in proportion to the odds. The published code carries absent
    objects, up to ten, as channels of probability 1e-7; their odds are below float32's resolution, so here are none.

    Args:
        probability: [O, ...] in [0, 1], any float dtype.

    Returns:
        Logits [1 + O, ...], float32, finite: background first.
    """
    probability = probability.float()
    background = torch.prod(1 - probability, dim=0, keepdim=True)  # [1, ...]
    return torch.logit(torch.cat([background, probability]), eps=EPSILON)  # [1 + O, ...]


def object_probabilities(logits: Tensor, pads: Pads) -> Tensor:
    """The softmax of the soft aggregation of the decoder's logits, resized and without the pads, in one pass.

    For a CPU that has :mod:`stm_fast.ops.probabilities`. Equal but for rounding, of which it has less: of logits in
    half precision too, all of it is in float32.

    Args:
        logits: [O, 2, h, w] of background and object at stride 4, or [O, 1, h, w] of the object against it.
        pads: what was added around the frame.

    Returns:
        [1 + O, H, W], float32, background first.
    """
    height, width = (probabilities.STRIDE * side for side in logits.shape[-2:])
    left, right, top, bottom = pads
    return probabilities.object_probabilities(
        logits, top=top, left=left, height=height - top - bottom, width=width - left - right, epsilon=EPSILON
    )
