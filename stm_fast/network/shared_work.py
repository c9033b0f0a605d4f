"""The network's parts for inference: what depends on the frame alone once, then some objects at a time.

Each belongs together with the others, and has no gradients. The parts that they are made of belong to them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.network.decoder import Decoder
from stm_fast.network.encoders import MemoryEncoder, QueryEncoder
from stm_fast.network.stem import BandedConv, pooled, whole
from stm_fast.ops.room import ROOM


class SharingMemoryEncoder(nn.Module):
    """A `MemoryEncoder` whose two convolutions of masks are one.

    Args:
        encoder: with its BatchNorm folded.
        objects_at_a_time: fewer need less memory; None: all.
        rows_at_a_time: of the stem, likewise.
    """

    def __init__(
        self, encoder: MemoryEncoder, objects_at_a_time: int | None, rows_at_a_time: int | None = None
    ) -> None:
        super().__init__()
        self.objects_at_a_time = objects_at_a_time
        self.trunk = encoder
        weight = torch.cat([encoder.conv1_mask.weight, encoder.conv1_others.weight], dim=1)  # [C1, 2, 7, 7]
        self.stem_masks = BandedConv(_with(encoder.conv1_mask, weight, None), rows_at_a_time)
        self.stem_frame = BandedConv(encoder.conv1, rows_at_a_time)
        del encoder.conv1_mask, encoder.conv1_others, encoder.conv1

    def forward(self, frame: Tensor, mask: Tensor, others: Tensor, owner: None = None) -> Tensor:
        """As in `MemoryEncoder`: ``[1, 3, H, W]`` and twice ``[O, 1, H, W]`` to r4 ``[O, C4, H/16, W/16]``."""
        of_frame = whole(self.stem_frame(self.trunk.normalise(frame)), frame.shape[2] // 2)  # [1, C1, H/2, W/2]
        in_turn = zip(*(_in_turn(planes, self.objects_at_a_time) for planes in (mask, others)), strict=True)
        return _joined([self.features(of_frame, torch.cat(some, dim=1)) for some in in_turn])

    def features(self, of_frame: Tensor, masks: Tensor) -> Tensor:
        """Of some objects: ``[1, C1, H/2, W/2]`` and ``[O, 2, H, W]`` to r4 ``[O, C4, H/16, W/16]``."""
        bands = ((rows, band.add_(of_frame[:, :, rows])) for rows, band in self.stem_masks(masks))
        r4, _, _ = self.trunk.layers(pooled(bands, masks.shape[2] // 4))
        return r4


class SharingQueryEncoder(nn.Module):
    """A `QueryEncoder` that goes on to what the decoder makes of the frame alone: so r3 and r2 need not be kept.

    Args:
        encoder: with its BatchNorm folded.
        decoder: whose refinement stages take part.
        rows_at_a_time: of the stem; fewer need less memory; None: all.
    """

    def __init__(self, encoder: QueryEncoder, decoder: Decoder, rows_at_a_time: int | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", encoder.mean)
        self.trunk = encoder
        self.stem = BandedConv(encoder.conv1, rows_at_a_time)
        del encoder.conv1
        refines = decoder.refine3, decoder.refine2
        self.convs = nn.ModuleList([refine.skip_conv for refine in refines])
        self.blocks = nn.ModuleList([refine.skip_block for refine in refines])

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[1, 3, H, W]`` to r4 ``[1, C4, h, w]`` and details ``[1, D, 2h, 2w]`` and ``[1, D, 4h, 4w]``."""
        stem = self.stem(self.trunk.normalise(frame))
        r4, *skips = self.trunk.layers(pooled(stem, frame.shape[2] // 4))
        # popped, so that r3 and r2 are gone as soon as they were convolved
        detail3, detail2 = [block(conv(skips.pop(0))) for conv, block in zip(self.convs, self.blocks, strict=True)]
        return r4, detail3, detail2


class SharingDecoder(nn.Module):
    """A `Decoder` for what a `SharingQueryEncoder` gives.

    Its first convolution is one of what was read and one of the query's value, which objects share.

    Args:
        value_dim: Cv; the channels beyond it are the query's.
        objects_at_a_time: fewer need less memory; None: all.
    """

    def __init__(self, decoder: Decoder, value_dim: int, objects_at_a_time: int | None) -> None:
        super().__init__()
        self.objects_at_a_time = objects_at_a_time
        weight, bias = decoder.compress.weight, decoder.compress.bias
        self.compress_read = _with(decoder.compress, weight[:, :value_dim], None)
        self.compress_query = _with(decoder.compress, weight[:, value_dim:], bias)
        self.blocks = nn.ModuleList([decoder.merged_block, decoder.refine3.merged_block, decoder.refine2.merged_block])
        self.predict = decoder.predict

    def forward(
        self,
        read: Tensor,
        query_value: Tensor,
        detail3: Tensor,
        detail2: Tensor,
        owner: None = None,
        *,
        resized: bool = True,
    ) -> Tensor:
        """As in `Decoder`, with details ``[1, D, 2h, 2w]`` and ``[1, D, 4h, 4w]`` for skip features.

        Where they are not to be `resized` to the frame, logits are ``[O, 2, 4h, 4w]``.
        """
        m4 = self.compress_read(read).add_(self.compress_query(query_value))  # [O, D, h, w]
        in_turn = _in_turn(m4, self.objects_at_a_time)
        logits = _joined([self.logits(some, detail3, detail2) for some in in_turn])  # [O, 2, 4h, 4w]
        return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False) if resized else logits

    def logits(self, m: Tensor, *details: Tensor) -> Tensor:
        """Of some objects: m4 ``[O, D, h, w]`` and the details to ``[O, 2, 4h, 4w]``."""
        first, *rest = self.blocks
        m = first(m)
        for detail, block in zip(details, rest, strict=True):
            m = _twice_as_large(m).add_(detail)  # [O, D, 2h, 2w], then [O, D, 4h, 4w]
            m = block(m)
        logits: Tensor = self.predict(F.relu_(m))
        return logits


def _twice_as_large(m: Tensor) -> Tensor:
    batch, channels, height, width = m.shape
    out = ROOM.empty(m, batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
    torch.ops.aten.upsample_bilinear2d.out(m.detach(), out.shape[2:], False, 2.0, 2.0, out=out)
    return out


def _with(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution like another one, with other weights ``[K, C, k, k]``."""
    found = nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=bias is not None,
        device="meta",
    )
    found.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        found.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return found


def _in_turn(objects: Tensor, at_a_time: int | None) -> tuple[Tensor, ...]:
    return torch.split(objects, at_a_time or len(objects))


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    _, channels, height, width = parts[0].shape
    out = ROOM.empty(parts[0], sum(map(len, parts)), height, width, channels).permute(0, 3, 1, 2)
    return torch.cat([part.detach() for part in parts], out=out)
