"""Features to keys, which are compared, and values, which are read (STM, "Key and Value Embedding")."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# score of two equal unit keys, before training
_FIRST_SCORE = 20.0
# by how much a score falls, before training, from the same place to half a wavelength away, per wave
_FIRST_FALL = 1.0
# waves of 4, 2, 1, 1/2, ... of the frame's shorter side, each as sine and cosine of x and of y
_LONGEST_WAVE = 4.0
CHANNELS_OF_A_WAVE = 4


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions.

    Args:
        unit_keys: all keys have one length, which is learned. Then the dot product orders memory rows as their
            distance does: a key with a large norm cannot dominate the softmax, which STCN (Cheng et al., NeurIPS 2021,
            section 4) found the dot product to allow, and scores cannot saturate it.
        position_waves: number of sinusoidal position channels of keys, in groups of `CHANNELS_OF_A_WAVE`: sines and
            cosines of the coordinates (Vaswani et al., NeurIPS 2017, section 3.5). A score then falls with the distance
            between query and memory row, by amounts that are learned. Without them the read ignores positions, as
            published.

    Attributes:
        key_dim: channels of a key with those of its position, Ck.
    """

    def __init__(
        self, channels: int, key_dim: int, value_dim: int, unit_keys: bool = False, position_waves: int = 0
    ) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, key_dim, kernel_size=3, padding=1)
        self.value = nn.Conv2d(channels, value_dim, kernel_size=3, padding=1)
        self.key_dim = key_dim + CHANNELS_OF_A_WAVE * position_waves
        # a score is the product of two lengths over sqrt(Ck)
        length = torch.tensor(math.sqrt(_FIRST_SCORE * math.sqrt(self.key_dim)))
        self.key_length = nn.Parameter(length) if unit_keys else None
        strength = torch.full((position_waves,), 0.5 * math.log(_FIRST_FALL / 2 * math.sqrt(self.key_dim)))
        self.position_strength = nn.Parameter(strength) if position_waves else None  # logarithms of amplitudes

    def take_over(self, other: "KeyValue") -> None:
        """Loads the weights of one without position waves; apart from the position's share, scores stay the same."""
        self.load_state_dict(other.state_dict(), strict=False)
        # scores are divided by sqrt(Ck), and Ck has grown
        grown = (self.key_dim / other.key_dim) ** 0.25
        lengths = list(self.key.parameters()) if self.key_length is None else [self.key_length]
        with torch.no_grad():
            for length in lengths:
                length.mul_(grown)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, C, h, w] to key [B, Ck, h, w] and value [B, Cv, h, w]."""
        key = self.key(features)
        if self.key_length is not None:
            key = F.normalize(key, dim=1) * self.key_length
        if self.position_strength is not None:
            height, width = key.shape[-2:]
            position = positions(height, width, self.position_strength.exp())  # [4 waves, h, w]
            position = position.to(key.dtype).expand(len(key), -1, -1, -1)
            # in the key's layout: of two layouts cat() makes channels first
            last = key.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            key = torch.cat([key, position.contiguous(memory_format=layout)], dim=1)
        return key, self.value(features)


def positions(height: int, width: int, amplitudes: Tensor) -> Tensor:
    """Sines and cosines ``[4 * waves, height, width]`` of every place, with one amplitude per wave.

    The dot product of two places' channels is ``sum over waves of a^2 (cos(f dx) + cos(f dy))``.
    """
    # phases of many periods need more than 16 bits
    amplitudes = amplitudes.to(torch.promote_types(amplitudes.dtype, torch.float32))
    y, x = (torch.arange(side, device=amplitudes.device, dtype=amplitudes.dtype) for side in (height, width))
    waves = torch.arange(len(amplitudes), device=amplitudes.device)
    frequency = 2 * math.pi / (_LONGEST_WAVE * min(height, width)) * 2**waves  # [waves], per place
    phases = [frequency[:, None, None] * x.expand(height, -1), frequency[:, None, None] * y[:, None].expand(-1, width)]
    waving = [wave(phase) for phase in phases for wave in (torch.sin, torch.cos)]  # 4 of [waves, height, width]
    return torch.cat(waving) * amplitudes.repeat(CHANNELS_OF_A_WAVE)[:, None, None]
