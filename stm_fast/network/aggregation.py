"""Soft aggregation of per-object probabilities into one distribution over background and objects."""

import torch
from torch import Tensor

EPSILON = 1e-7


def soft_aggregation(probability: Tensor, dim: int = 0) -> Tensor:
    """Combines the objects' independent probabilities (STM, "Multi-object Segmentation").

    The background's probability is `p_0 = prod_o (1 - p_o)`. Each channel's logit is `log(p / (1 - p))`, so the softmax
    over channels is proportional to the odds. The published code also has channels of probability 1e-7 for absent
    objects, up to ten; their odds are below the resolution of float32, so they are omitted here.

    Args:
        probability: [O, ...] in [0, 1], any float dtype.
        dim: the dimension of the objects.

    Returns:
        Logits [1 + O, ...], float32, finite: background first.
    """
    probability = probability.float()
    background = torch.prod(1 - probability, dim=dim, keepdim=True)  # [1, ...]
    return torch.logit(torch.cat([background, probability], dim=dim), eps=EPSILON)  # [1 + O, ...]
