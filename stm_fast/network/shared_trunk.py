"""Light heads of a network with one trunk for memory and query: key, value and decoder.

A frame is encoded once; masks only enter the value head. A value contains the mask itself, as 4 x 4 cells of 4 x 4
pixels, so that a read copies masks even before training. Scores depend on the distance between two positions.

A position is a row or column at stride 16.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.network.decoder import ResidualBlock, upsampled
from stm_fast.network.key_value import with_position

CELL = 4  # pixels per side
CELLS_PER_SIDE = 4  # of a position
CELLS = CELLS_PER_SIDE**2
POSITION_CHANNELS = 3  # of a key

# score of two equal unit keys, before training
_INITIAL_SCORE = 25.0
# difference of scores, before training, between the same position and its neighbor
_INITIAL_PENALTY = 0.01
# scales of the position channels, which keep all channels of memory keys at a similar magnitude, for storage in 8 bits
_QUERY_SCALE, _SQUARE_SCALE = 4.0, 32.0
# scale normalized features of about 100 channels, and features of linear layers, to about 1
_UNIT_GAIN, SKIP_GAIN = 4.0, 0.25


class SharedKeyValue(nn.Module):
    """Normalized keys, and the frame's features for value and decoder.

    A score is ``length^2 cos(q, k) - penalty |position_q - position_k|^2``. The squared distance is the dot product of
    three further channels, up to a term that depends on the query alone and cancels in the softmax. So all backends of
    the memory read support it, and memory rows need no coordinates.

    Args:
        maps: channels of each feature map in the input.
        key_dim: channels of a key, Ck, including position channels.
        frame_dim: channels of the frame's features, F.
    """

    def __init__(self, maps: Sequence[int], key_dim: int, frame_dim: int) -> None:
        super().__init__()
        self._maps = list(maps)
        self.key_dim = key_dim
        self.key = nn.Conv2d(sum(maps), key_dim - POSITION_CHANNELS, kernel_size=1)
        self.frame = nn.Conv2d(sum(maps), frame_dim, kernel_size=1)
        # a score is the product of two lengths over sqrt(Ck)
        self.key_length = nn.Parameter(torch.tensor(math.sqrt(_INITIAL_SCORE * math.sqrt(key_dim))))
        self.distance = nn.Parameter(torch.tensor(math.log(_INITIAL_PENALTY)))  # logarithm of the penalty
        nn.init.orthogonal_(self.key.weight)
        assert self.key.bias is not None
        nn.init.zeros_(self.key.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, C, h, w] to query key [B, Ck, h, w] and frame features [B, F, h, w]."""
        unit = torch.cat([F.normalize(part, dim=1) for part in torch.split(features, self._maps, dim=1)], dim=1)
        key = F.normalize(self.key(unit), dim=1) * self.key_length
        x, y = _coordinates(key)
        position = torch.stack([x, y, torch.full_like(x, _SQUARE_SCALE)]) * _QUERY_SCALE
        return with_position(key, position), self.frame(unit * _UNIT_GAIN)

    def anywhere(self, query_key: Tensor, lost: Sequence[int], count: int) -> Tensor:
        """The query key [1, Ck, h, w] for each of `count` objects, [O, Ck, h, w].

        The key of objects that are `lost`, by index, has no position, so that they are searched in the whole frame.
        """
        keep = query_key.new_ones(count, self.key_dim, 1, 1)
        keep[list(lost), -POSITION_CHANNELS:] = 0
        return query_key * keep

    def memory_key(self, query_key: Tensor) -> Tensor:
        """The memory key [B, Ck, h, w] of a frame from its query key."""
        x, y = _coordinates(query_key)
        position = torch.stack([2 * x, 2 * y, -(x.square() + y.square()) / _SQUARE_SCALE])
        return with_position(query_key[:, : self.key_dim - POSITION_CHANNELS], position * self._penalty(position.dtype))

    def query_of(self, memory_key: Tensor) -> Tensor:
        """The query keys [N, Ck] of the same positions as some memory keys [N, Ck]."""
        query_key = memory_key.clone()
        query_key[:, -POSITION_CHANNELS:-1] *= _QUERY_SCALE / 2 / self._penalty(memory_key.dtype)
        query_key[:, -1] = _SQUARE_SCALE * _QUERY_SCALE
        return query_key

    def _penalty(self, dtype: torch.dtype) -> Tensor:
        """The scale of the position channels of memory keys."""
        return self.distance.to(dtype).exp() * math.sqrt(self.key_dim) / _QUERY_SCALE


class MaskValue(nn.Module):
    """The value of an object in a frame: the cells of its mask, followed by learned channels."""

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
            others: [O, 1, H, W], soft mask of the union of the other objects.
        """
        cells, other_cells = _cells(mask), _cells(others)
        h = F.relu(self.conv1(torch.cat([frame, cells, other_cells], dim=1)))
        return torch.cat([cells, self.conv2(h)], dim=1)


class LightDecoder(nn.Module):
    """Refines the mask that was read, at strides 16, 8 and 4, with fewer channels at each."""

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
        """The logits of each object.

        Args:
            read: [O, Cv, h, w], what each object read.
            frame: [B, F, h, w], features of B frames.
            r3: [B, C3, 2h, 2w], skip features of the frames.
            r2: [B, C2, 4h, 4w], likewise.
            batch_index: [O] int64, the frame of each object; None: one frame for all objects, or one for each object.

        Returns:
            [O, 1, 16h, 16w].
        """
        details = [self.skip3(r3 * SKIP_GAIN), self.skip2(r2 * SKIP_GAIN)]
        if batch_index is not None:
            frame, details = frame[batch_index], [detail[batch_index] for detail in details]
        return upsampled(self.logits(read, frame, *details), 4)

    def logits(self, read: Tensor, frame: Tensor, detail3: Tensor, detail2: Tensor) -> Tensor:
        """Logits at stride 4, [O, 1, 4h, 4w], from convolved skip features."""
        copied = F.pixel_shuffle(read[:, :CELLS], CELLS_PER_SIDE)  # [O, 1, 4h, 4w] in [0, 1]
        frame = frame.expand(read.shape[0], -1, -1, -1)
        m = self.merged_block(self.compress(torch.cat([read, frame], dim=1)))  # [O, D, h, w]
        m = self.block3(upsampled(self.narrow3(m), 2) + detail3)  # [O, D3, 2h, 2w]
        m = upsampled(self.narrow2(m), 2) + detail2 + self.copied2(2 * copied - 1)  # [O, D2, 4h, 4w]
        correction: Tensor = self.predict(F.relu(self.block2(m)))
        return correction + (4 * copied - 2)


def _coordinates(like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of every position relative to the center, ``[h, w]`` each; in float32 or wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    height, width = like.shape[-2:]
    x, y = (torch.arange(side, device=like.device, dtype=dtype) - (side - 1) / 2 for side in (width, height))
    return x.expand(height, -1), y[:, None].expand(-1, width)


def _cells(mask: Tensor) -> Tensor:
    """The means of a mask ``[O, 1, H, W]`` over its cells, ``[O, 16, H / 16, W / 16]``."""
    return F.pixel_unshuffle(F.avg_pool2d(mask, CELL), CELLS_PER_SIDE)
