"""Features to keys, which are compared, and values, which are read (STM, "Key and Value Embedding")."""

from torch import Tensor, nn


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions."""

    def __init__(self, channels: int, key_dim: int, value_dim: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, key_dim, kernel_size=3, padding=1)
        self.value = nn.Conv2d(channels, value_dim, kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, C, h, w] to key [B, Ck, h, w] and value [B, Cv, h, w]."""
        return self.key(features), self.value(features)
