"""The network's parts for inference: what depends on the frame alone is computed once, then some objects at a time.

These parts belong together, have no gradients, and take over the modules of those that they replace.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stm_fast.network.decoder import Decoder
from stm_fast.network.encoders import MemoryEncoder, QueryEncoder
from stm_fast.network.shared_trunk import SKIP_GAIN, LightDecoder


class SharingMemoryEncoder(nn.Module):
    """A `MemoryEncoder` whose two convolutions of masks are one.

    Args:
        encoder: with its BatchNorm folded.
        objects_at_a_time: fewer need less memory; None: all.
    """

    def __init__(self, encoder: MemoryEncoder, objects_at_a_time: int | None) -> None:
        super().__init__()
        self.objects_at_a_time = objects_at_a_time
        self.trunk = encoder
        weight = torch.cat([encoder.conv1_mask.weight, encoder.conv1_others.weight], dim=1)  # [C1, 2, 7, 7]
        self.conv1_masks = _with(encoder.conv1_mask, weight, None)
        del encoder.conv1_mask, encoder.conv1_others

    def forward(self, frame: Tensor, mask: Tensor, others: Tensor, batch_index: Tensor | None = None) -> Tensor:
        """As in `MemoryEncoder`, of one frame: [1, 3, H, W] and twice [O, 1, H, W] to r4 [O, C4, H/16, W/16]."""
        _check_one_frame(batch_index)
        of_frame = self.trunk.conv1(self.trunk.normalize(frame))  # [1, C1, H/2, W/2]
        planes = torch.split(torch.cat([mask, others], dim=1), self.objects_at_a_time or len(mask))
        return _joined([self.features(of_frame, some) for some in planes])

    def features(self, of_frame: Tensor, masks: Tensor) -> Tensor:
        """Of some objects: [1, C1, H/2, W/2] and [O, 2, H, W] to r4 [O, C4, H/16, W/16]."""
        r4, _, _ = self.trunk.stages(self.conv1_masks(masks).add_(of_frame))
        return r4


class SharingQueryEncoder(nn.Module):
    """A `QueryEncoder` that also computes what the decoder needs of the frame alone, so that r3 and r2 can be freed.

    Args:
        encoder: with its BatchNorm folded.
        decoder: whose refinement stages take part.
    """

    def __init__(self, encoder: QueryEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.register_buffer("mean", encoder.mean)
        self.trunk = encoder
        refines = decoder.refine3, decoder.refine2
        self.convs = nn.ModuleList([refine.skip_conv for refine in refines])
        self.blocks = nn.ModuleList([refine.skip_block for refine in refines])

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] to r4 [B, C4, h, w] and details [B, D, 2h, 2w] and [B, D, 4h, 4w]."""
        r4, *skips = self.trunk(frame)
        # popped, so that r3 and r2 are freed as soon as they are convolved
        detail3, detail2 = [block(conv(skips.pop(0))) for conv, block in zip(self.convs, self.blocks, strict=True)]
        return r4, detail3, detail2


class SharingDecoder(nn.Module):
    """A `Decoder` of the details of a `SharingQueryEncoder`.

    Its first convolution is split into one of what was read and one of the query's value, which objects share.

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
        batch_index: Tensor | None = None,
        *,
        resized: bool = True,
    ) -> Tensor:
        """As in `Decoder`, of one frame; logits that are not `resized` to the frame are [O, 2, 4h, 4w]."""
        _check_one_frame(batch_index)
        m4 = self.compress_read(read).add_(self.compress_query(query_value))  # [O, D, h, w]
        in_turn = torch.split(m4, self.objects_at_a_time or len(m4))
        logits = _joined([self.logits(some, detail3, detail2) for some in in_turn])
        return _resized(logits) if resized else logits

    def logits(self, m: Tensor, *details: Tensor) -> Tensor:
        """Of some objects: m4 [O, D, h, w] and the details to [O, 2, 4h, 4w]."""
        first, *rest = self.blocks
        m = first(m)
        for detail, block in zip(details, rest, strict=True):
            m = F.interpolate(m, scale_factor=2, mode="bilinear", align_corners=False).add_(detail)
            m = block(m)  # [O, D, 2h, 2w], then [O, D, 4h, 4w]
        logits: Tensor = self.predict(F.relu_(m))
        return logits


class SharingLightDecoder(nn.Module):
    """A `LightDecoder` whose convolutions of skip features have taken over the gain.

    Args:
        objects_at_a_time: fewer need less memory; None: all.
    """

    def __init__(self, decoder: LightDecoder, objects_at_a_time: int | None) -> None:
        super().__init__()
        self.objects_at_a_time = objects_at_a_time
        self.light = decoder
        for skip in (decoder.skip3, decoder.skip2):
            skip.weight.mul_(SKIP_GAIN)

    def forward(
        self,
        read: Tensor,
        frame: Tensor,
        r3: Tensor,
        r2: Tensor,
        batch_index: Tensor | None = None,
        *,
        resized: bool = True,
    ) -> Tensor:
        """As in `LightDecoder`, of one frame; logits that are not `resized` to the frame are [O, 1, 4h, 4w]."""
        _check_one_frame(batch_index)
        details = self.light.skip3(r3), self.light.skip2(r2)
        in_turn = torch.split(read, self.objects_at_a_time or len(read))
        logits = _joined([self.light.logits(some, frame, *details) for some in in_turn])
        return _resized(logits) if resized else logits


def _resized(logits: Tensor) -> Tensor:
    return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _check_one_frame(batch_index: Tensor | None) -> None:
    if batch_index is not None:
        raise ValueError("objects: found those of several frames, expected one frame: the network only infers")


def _with(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution like another one, with other weights [K, C, k, k]."""
    found = deepcopy(conv)
    found.in_channels = weight.shape[1]
    found.weight = nn.Parameter(weight.clone(), requires_grad=False)
    found.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    return found
