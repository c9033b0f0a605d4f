"""Soft aggregation: one distribution over background and objects out of one probability per object."""

import torch
from torch import Tensor

EPSILON = 1e-7


def soft_aggregation(probability: Tensor, dim: int = 0) -> Tensor:
    """Joins the objects' independent probabilities (STM, "Multi-object Segmentation").

    The background is where no object is: `p_0 = prod_o (1 - p_o)`. Each channel's logit is `log(p / (1 - p))`, so the
    softmax over the channels divides every pixel in proportion to the odds. The published code carries absent
    objects, up to ten, as channels of probability 1e-7; their odds are below float32's resolution, so none are here.

    Args:
        probability: [O, ...] in [0, 1], any float dtype.
        dim: that of the objects, where it is not the first.

    Returns:
        Logits [1 + O, ...], float32, finite: background first.
    """
    probability = probability.float()
    background = torch.prod(1 - probability, dim=dim, keepdim=True)  # [1, ...]
    return torch.logit(torch.cat([background, probability], dim=dim), eps=EPSILON)  # [1 + O, ...]
