"""The beginning of a trunk, some rows at a time: what its first convolution makes is the network's largest map."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.ops.room import ROOM

# some rows of the convolution's result, and which of the whole they are
Band = tuple[slice, Tensor]  # rows, [B, C1, rows, W/2]


class BandedConv(nn.Module):
    """A first convolution of 7 x 7 and stride 2, some rows at a time.

    Args:
        conv: becomes a part of it.
        rows: how many rows of a band remain after pooling; None: all.
    """

    def __init__(self, conv: nn.Conv2d, rows: int | None) -> None:
        super().__init__()
        self._rows = rows
        self._margin = int(conv.padding[0])
        self.conv = conv
        self.conv.padding = (0, self._margin)

    def forward(self, x: Tensor) -> Iterator[Band]:
        """``[B, C, H, W]`` to bands from top to bottom, each with the row above it that its pooling needs."""
        padded = F.pad(x, (0, 0, self._margin, self._margin))
        height = x.shape[2] // 2
        step = 2 * self._rows if self._rows else height
        for first in range(0, height, step):
            rows = slice(max(first - 1, 0), min(first + step, height))
            yield rows, self.conv(padded[:, :, 2 * rows.start : 2 * (rows.stop + self._margin) - 1])


def whole(bands: Iterable[Band], height: int) -> Tensor:
    """The convolution's result ``[B, C1, height, W/2]``."""
    bands = iter(bands)
    rows, band = next(bands)
    if rows.stop == height:
        return band
    out = _channels_last_like(band, height, band.shape[3])
    out[:, :, rows] = band
    for rows, band in bands:
        out[:, :, rows] = band
    return out


def pooled(bands: Iterable[Band], height: int) -> Tensor:
    """Activation and pooling, 3 x 3 with stride 2, of bands that it overwrites: ``[B, C1, height, W/4]``."""
    out: Tensor | None = None
    for rows, band in bands:
        part = F.max_pool2d(F.relu_(band), kernel_size=3, stride=2, padding=(int(rows.start == 0), 1))
        if out is None:
            if part.shape[2] == height:
                return part
            out = _channels_last_like(part, height, part.shape[3])
        out[:, :, (rows.start + 1) // 2 : rows.stop // 2] = part
    assert out is not None
    return out


def _channels_last_like(x: Tensor, height: int, width: int) -> Tensor:
    return ROOM.empty(x, x.shape[0], height, width, x.shape[1]).permute(0, 3, 1, 2)
