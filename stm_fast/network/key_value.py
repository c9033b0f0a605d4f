"""Features to keys, which are compared, and values, which are read (STM, "Key and Value Embedding")."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# of two unit keys that agree, before training
_FIRST_SCORE = 20.0


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions.

    Args:
        unit_keys: keys get one length, which is learnt. Then the dot product orders memory rows as their distance does:
            no row draws all queries to itself because it is long, which STCN (Cheng et al., NeurIPS 2021, section 4)
            found the dot product to do, and scores cannot grow until the softmax passes no gradient on.
    """

    def __init__(self, channels: int, key_dim: int, value_dim: int, unit_keys: bool = False) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, key_dim, kernel_size=3, padding=1)
        self.value = nn.Conv2d(channels, value_dim, kernel_size=3, padding=1)
        # a score is the product of two lengths over sqrt(Ck)
        length = torch.tensor(math.sqrt(_FIRST_SCORE * math.sqrt(key_dim)))
        self.key_length = nn.Parameter(length) if unit_keys else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, C, h, w] to key [B, Ck, h, w] and value [B, Cv, h, w]."""
        key = self.key(features)
        if self.key_length is not None:
            key = F.normalize(key, dim=1) * self.key_length
        return key, self.value(features)
