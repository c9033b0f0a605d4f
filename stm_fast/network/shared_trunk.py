"""Light heads of a network whose memory and query share one trunk: from features to keys, values and masks.

A frame is encoded once; a memory row adds its mask. The value contains the mask itself, as the 4 x 4 cells of 4 x 4
pixels in a place of stride 16, so that a read copies masks even before training; the distance between two places is
part of the score.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.network.decoder import ResidualBlock

CELL = 4  # pixels a side
CELLS_A_SIDE = 4  # of a place of stride 16
CELLS = CELLS_A_SIDE**2
PLACE_CHANNELS = 3  # of a key

# score of two equal unit keys, before training
_FIRST_SCORE = 25.0
# by how much a score falls, before training, from the same place to the next one
_FIRST_FALL = 0.01
# scales of the three place channels in query and memory: no entry of a memory key is far larger than the others, which
# rows stored in 8 bits need
_QUERY_SHARE, _REACH = 4.0, 32.0
# scale unit features of about 100 channels, and linear ones, to about 1
_UNIT_GAIN, SKIP_GAIN = 4.0, 0.25


class SharedKeyValue(nn.Module):
    """Keys of one length from the unit features of each map, and the frame's features for value and decoder.

    A score is ``length^2 cos(q, k) - fall |place_q - place_k|^2``, in units of tokens; the square is the dot product of
    three further channels, up to a term of the query alone, which cancels in the softmax. So every backend can read it,
    forward and backward, and rows of the memory need no indices.

    Args:
        maps: channels of each map that the features are made of.
        key_dim: channels of a key, Ck, with those of its place.
        frame_dim: channels of the frame's features.
    """

    def __init__(self, maps: Sequence[int], key_dim: int, frame_dim: int) -> None:
        super().__init__()
        self._maps = list(maps)
        self.key_dim = key_dim
        self.key = nn.Conv2d(sum(maps), key_dim - PLACE_CHANNELS, kernel_size=1)
        self.frame = nn.Conv2d(sum(maps), frame_dim, kernel_size=1)
        # a score is the product of two lengths over sqrt(Ck)
        self.key_length = nn.Parameter(torch.tensor(math.sqrt(_FIRST_SCORE * math.sqrt(key_dim))))
        self.distance = nn.Parameter(torch.tensor(math.log(_FIRST_FALL)))  # logarithm of the fall
        nn.init.orthogonal_(self.key.weight)
        assert self.key.bias is not None
        nn.init.zeros_(self.key.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, C, h, w] to the query's key [B, Ck, h, w] and the frame's features [B, F, h, w]."""
        unit = torch.cat([F.normalize(part, dim=1) for part in torch.split(features, self._maps, dim=1)], dim=1)
        key = F.normalize(self.key(unit), dim=1) * self.key_length
        x, y = _places(key)
        place = torch.stack([x, y, torch.full_like(x, _REACH)]) * _QUERY_SHARE
        return _with_place(key, place), self.frame(unit * _UNIT_GAIN)

    def anywhere(self, query_key: Tensor, wanted: Sequence[int], count: int) -> Tensor:
        """The query key for each of `count` objects, [O, Ck, h, w], from the one [1, Ck, h, w].

        For those that are `wanted`, by index, it contains no place: no row is farther than another.
        """
        holds = query_key.new_ones(count, self.key_dim, 1, 1)
        holds[list(wanted), -PLACE_CHANNELS:] = 0
        return query_key * holds

    def memory_key(self, query_key: Tensor) -> Tensor:
        """The memory key of a frame, [B, Ck, h, w], from its query key."""
        x, y = _places(query_key)
        place = torch.stack([2 * x, 2 * y, -(x.square() + y.square()) / _REACH])
        fall = self.distance.to(place.dtype).exp() * math.sqrt(self.key_dim) / _QUERY_SHARE
        return _with_place(query_key[:, : self.key_dim - PLACE_CHANNELS], place * fall)


class MaskValue(nn.Module):
    """The value of an object in a frame: the cells of its mask, and learned channels."""

    def __init__(self, frame_dim: int, value_dim: int) -> None:
        super().__init__()
        learned = value_dim - CELLS
        self.conv1 = nn.Conv2d(frame_dim + 2 * CELLS, learned, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(learned, learned, kernel_size=3, padding=1)

    def forward(self, frame: Tensor, mask: Tensor, others: Tensor) -> Tensor:
        """The value [O, Cv, h, w].

        Args:
            frame: [O, F, h, w], features of each object's frame.
            mask: [O, 1, H, W], soft mask of each object.
            others: [O, 1, H, W], soft mask of the other objects together.
        """
        cells, other_cells = _cells(mask), _cells(others)
        h = F.relu(self.conv1(torch.cat([frame, cells, other_cells], dim=1)))
        return torch.cat([cells, self.conv2(h)], dim=1)


class LightDecoder(nn.Module):
    """Corrects the mask that was copied, at strides 16, 8 and 4, with fewer channels at each."""

    def __init__(self, value_dim: int, frame_dim: int, r3_channels: int, r2_channels: int, decoder_dim: int) -> None:
        super().__init__()
        width3, width2 = 3 * decoder_dim // 4, 3 * decoder_dim // 8
        self.compress = nn.Conv2d(value_dim + frame_dim, decoder_dim, kernel_size=3, padding=1)
        self.merged_block = ResidualBlock(decoder_dim)
        self.narrow3 = nn.Conv2d(decoder_dim, width3, kernel_size=1)
        self.skip3 = nn.Conv2d(r3_channels, width3, kernel_size=3, padding=1)
        self.block3 = ResidualBlock(width3)
        self.narrow2 = nn.Conv2d(width3, width2, kernel_size=1)
        self.skip2 = nn.Conv2d(r2_channels, width2, kernel_size=3, padding=1)
        self.copied2 = nn.Conv2d(1, width2, kernel_size=3, padding=1, bias=False)
        self.block2 = ResidualBlock(width2)
        self.predict = nn.Conv2d(width2, 1, kernel_size=3, padding=1)

    def forward(self, read: Tensor, frame: Tensor, r3: Tensor, r2: Tensor, batch_index: Tensor | None = None) -> Tensor:
        """The logit of each object.

        Args:
            read: [O, Cv, h, w], what each object read.
            frame: [B, F, h, w], features of B frames.
            r3: [B, C3, 2h, 2w] skip features of the query.
            r2: [B, C2, 4h, 4w] likewise.
            batch_index: [O] int64, the frame of each object; None: one frame for all objects, or one for each object.

        Returns:
            [O, 1, 16h, 16w].
        """
        details = [self.skip3(r3 * SKIP_GAIN), self.skip2(r2 * SKIP_GAIN)]
        if batch_index is not None:
            frame, details = frame[batch_index], [detail[batch_index] for detail in details]
        logits = self.logits(read, frame, *details)
        return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)

    def logits(self, read: Tensor, frame: Tensor, detail3: Tensor, detail2: Tensor) -> Tensor:
        """At stride 4, from the convolved skip features: [O, 1, 4h, 4w]."""
        copied = F.pixel_shuffle(read[:, :CELLS], CELLS_A_SIDE)  # [O, 1, 4h, 4w] in [0, 1]
        frame = frame.expand(len(read), -1, -1, -1)
        m = self.merged_block(self.compress(torch.cat([read, frame], dim=1)))  # [O, D, h, w]
        m = self.block3(_twice_as_large(self.narrow3(m)) + detail3)  # [O, D3, 2h, 2w]
        m = _twice_as_large(self.narrow2(m)) + detail2 + self.copied2(2 * copied - 1)  # [O, D2, 4h, 4w]
        correction: Tensor = self.predict(F.relu(self.block2(m)))
        return correction + (4 * copied - 2)


def _places(like: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates ``[h, w]`` of every place, in tokens from the middle, across and down; in float32 or wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    height, width = like.shape[-2:]
    x, y = (torch.arange(side, device=like.device, dtype=dtype) - (side - 1) / 2 for side in (width, height))
    return x.expand(height, -1), y[:, None].expand(-1, width)


def _with_place(key: Tensor, place: Tensor) -> Tensor:
    """``[B, C, h, w]`` followed by ``[3, h, w]``, in the key's layout: cat() of two layouts is channels first."""
    last = key.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    places = place.to(key.dtype).expand(len(key), -1, -1, -1).contiguous(memory_format=layout)
    return torch.cat([key, places], dim=1)


def _cells(mask: Tensor) -> Tensor:
    """``[O, 1, H, W]`` to the means of its cells, ``[O, 16, H / 16, W / 16]``."""
    return F.pixel_unshuffle(F.avg_pool2d(mask, CELL), CELLS_A_SIDE)


def _twice_as_large(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
