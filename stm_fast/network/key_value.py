"""The key and value heads (STM, "Key and Value Embedding")."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# score of two equal unit keys, before training
_INITIAL_SCORE = 20.0
# difference of scores, before training, between the same position and one half a wavelength away, per wave
_INITIAL_PENALTY = 1.0
# wavelengths are 4, 2, 1, 1/2, ... times the frame's shorter side
_LONGEST_WAVE = 4.0
CHANNELS_PER_WAVE = 4  # sine and cosine of x and y


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions.

    Args:
        channels: of the features.
        key_dim: channels of a key, without position channels.
        value_dim: channels of a value, Cv.
        unit_keys: normalizes keys to one length, which is learned. Then a key with a large norm cannot dominate the
            softmax, which STCN (Cheng et al., NeurIPS 2021, section 4) found with plain dot products, and scores cannot
            saturate it.
        position_waves: number of wavelengths of the sinusoidal position channels of keys, `CHANNELS_PER_WAVE` each
            (Vaswani et al., NeurIPS 2017, section 3.5). Scores then fall with the distance between query and memory
            row, by amounts that are learned. With 0, the read ignores positions, as published.

    Attributes:
        key_dim: channels of a key including position channels, Ck.
    """

    def __init__(
        self, channels: int, key_dim: int, value_dim: int, unit_keys: bool = False, position_waves: int = 0
    ) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, key_dim, kernel_size=3, padding=1)
        self.value = nn.Conv2d(channels, value_dim, kernel_size=3, padding=1)
        self.key_dim = key_dim + CHANNELS_PER_WAVE * position_waves
        # a score is the product of two lengths over sqrt(Ck)
        length = torch.tensor(math.sqrt(_INITIAL_SCORE * math.sqrt(self.key_dim)))
        self.key_length = nn.Parameter(length) if unit_keys else None
        strength = torch.full((position_waves,), 0.5 * math.log(_INITIAL_PENALTY / 2 * math.sqrt(self.key_dim)))
        self.position_strength = nn.Parameter(strength) if position_waves else None  # logarithms of amplitudes

    def load_without_waves(self, other: "KeyValue") -> None:
        """Loads weights that have no position waves, such that scores only change by the contribution of positions."""
        self.load_state_dict(other.state_dict(), strict=False)
        # scores are divided by sqrt(Ck), which has grown
        growth = (self.key_dim / other.key_dim) ** 0.25
        lengths = list(self.key.parameters()) if self.key_length is None else [self.key_length]
        with torch.no_grad():
            for length in lengths:
                length.mul_(growth)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, C, h, w] to key [B, Ck, h, w] and value [B, Cv, h, w]."""
        key = self.key(features)
        if self.key_length is not None:
            key = F.normalize(key, dim=1) * self.key_length
        if self.position_strength is not None:
            height, width = key.shape[-2:]
            key = with_position(key, positions(height, width, self.position_strength.exp()))
        return key, self.value(features)


def with_position(key: Tensor, position: Tensor) -> Tensor:
    """Appends position channels [P, h, w] to keys [B, C, h, w]."""
    # cat() of two memory layouts returns channels first
    last = key.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    position = position.to(key.dtype).expand(key.shape[0], -1, -1, -1).contiguous(memory_format=layout)
    return torch.cat([key, position], dim=1)


def positions(height: int, width: int, amplitudes: Tensor) -> Tensor:
    """Sines and cosines ``[4 * waves, height, width]`` of the coordinates, with one amplitude per wave.

    The dot product of two positions' channels is ``sum over waves of a^2 (cos(f dx) + cos(f dy))``.
    """
    # 16 bits are not enough for phases of many periods
    amplitudes = amplitudes.to(torch.promote_types(amplitudes.dtype, torch.float32))
    y, x = (torch.arange(side, device=amplitudes.device, dtype=amplitudes.dtype) for side in (height, width))
    waves = torch.arange(len(amplitudes), device=amplitudes.device)
    frequency = 2 * math.pi / (_LONGEST_WAVE * min(height, width)) * 2**waves  # [waves], in radians per row or column
    phases = [frequency[:, None, None] * x.expand(height, -1), frequency[:, None, None] * y[:, None].expand(-1, width)]
    channels = [wave(phase) for phase in phases for wave in (torch.sin, torch.cos)]  # 4 of [waves, height, width]
    return torch.cat(channels) * amplitudes.repeat(CHANNELS_PER_WAVE)[:, None, None]
