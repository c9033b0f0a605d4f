"""Encoders and decoders for inference: work that only depends on the frame is done once, then a few objects at a time.

These modules must be used together, have no gradients, and reuse the modules that they replace.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from stm_fast.network.decoder import Decoder, upsampled
from stm_fast.network.encoders import MemoryEncoder, QueryEncoder
from stm_fast.network.shared_trunk import SKIP_GAIN, LightDecoder


class SharingMemoryEncoder(nn.Module):
    """A `MemoryEncoder` that computes the frame's convolution once, and whose two mask convolutions are one.

    Args:
        encoder: with its BatchNorm folded.
        objects_at_a_time: fewer need less memory; None: all.
    """

    def __init__(self, encoder: MemoryEncoder, objects_at_a_time: int | None) -> None:
        super().__init__()
        self.objects_at_a_time = objects_at_a_time
        self.trunk = encoder
        weight = torch.cat([encoder.conv1_mask.weight, encoder.conv1_others.weight], dim=1)  # [C1, 2, 7, 7]
        self.conv1_masks = with_weights(encoder.conv1_mask, weight, None)
        del encoder.conv1_mask, encoder.conv1_others

    def forward(self, frame: Tensor, mask: Tensor, others: Tensor, batch_index: Tensor | None = None) -> Tensor:
        """`MemoryEncoder.forward` for one frame: [1, 3, H, W] and twice [O, 1, H, W] to r4 [O, C4, H/16, W/16]."""
        _check_one_frame(batch_index)
        of_frame = self.trunk.conv1(self.trunk.normalize(frame))  # [1, C1, H/2, W/2]
        masks = torch.cat([mask, others], dim=1)
        return _in_parts(lambda some: self.features(of_frame, some), masks, self.objects_at_a_time)

    def features(self, of_frame: Tensor, masks: Tensor) -> Tensor:
        """[1, C1, H/2, W/2] and masks [O, 2, H, W] of some objects to r4 [O, C4, H/16, W/16]."""
        r4, _, _ = self.trunk.stages(self.conv1_masks(masks).add_(of_frame))
        return r4


class SharingQueryEncoder(nn.Module):
    """A `QueryEncoder` that also convolves the skip features for the decoder, so that r3 and r2 can be freed.

    Args:
        encoder: with its BatchNorm folded.
        decoder: whose refinement stages convolve the skip features.
    """

    def __init__(self, encoder: QueryEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.register_buffer("mean", encoder.mean)
        self.trunk = encoder
        refines = decoder.refine3, decoder.refine2
        self.convs = nn.ModuleList([refine.skip_conv for refine in refines])
        self.blocks = nn.ModuleList([refine.skip_block for refine in refines])

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] to r4 [B, C4, h, w] and convolved skip features [B, D, 2h, 2w] and [B, D, 4h, 4w]."""
        r4, *skips = self.trunk(frame)
        # pop() frees r3 and r2 as soon as they are convolved
        detail3, detail2 = [block(conv(skips.pop(0))) for conv, block in zip(self.convs, self.blocks, strict=True)]
        return r4, detail3, detail2


class _SharingDecoder(nn.Module):
    """A decoder for one frame that decodes a few objects at a time.

    Args:
        objects_at_a_time: fewer need less memory; None: all.
    """

    def __init__(self, objects_at_a_time: int | None) -> None:
        super().__init__()
        self.objects_at_a_time = objects_at_a_time

    def forward(
        self,
        read: Tensor,
        frame: Tensor,
        skip3: Tensor,
        skip2: Tensor,
        batch_index: Tensor | None = None,
        *,
        resized: bool = True,
    ) -> Tensor:
        """The arguments and result of the decoder it replaces; logits have stride 4 if not `resized` to the frame."""
        _check_one_frame(batch_index)
        per_object, *shared = self.shared_work(read, frame, skip3, skip2)
        logits = _in_parts(lambda some: self.logits(some, *shared), per_object, self.objects_at_a_time)
        return upsampled(logits, 4) if resized else logits

    def shared_work(self, read: Tensor, frame: Tensor, skip3: Tensor, skip2: Tensor) -> tuple[Tensor, ...]:
        """The arguments of `logits`: a tensor [O, ...], and tensors that all objects share."""
        raise NotImplementedError

    def logits(self, per_object: Tensor, *shared: Tensor) -> Tensor:
        """Logits [O, 1 or 2, 4h, 4w] of some objects."""
        raise NotImplementedError


class SharingDecoder(_SharingDecoder):
    """A `Decoder` of the features of a `SharingQueryEncoder`.

    Its first convolution is split into one of what was read and one of the query's value, which objects share.
    """

    def __init__(self, decoder: Decoder, value_dim: int, objects_at_a_time: int | None) -> None:
        super().__init__(objects_at_a_time)
        weight, bias = decoder.compress.weight, decoder.compress.bias
        self.compress_read = with_weights(decoder.compress, weight[:, :value_dim], None)
        self.compress_query = with_weights(decoder.compress, weight[:, value_dim:], bias)
        self.blocks = nn.ModuleList([decoder.merged_block, decoder.refine3.merged_block, decoder.refine2.merged_block])
        self.predict = nn.Sequential(nn.ReLU(inplace=True), decoder.predict)

    def shared_work(self, read: Tensor, frame: Tensor, skip3: Tensor, skip2: Tensor) -> tuple[Tensor, ...]:
        """m4 [O, D, h, w], and the skip features, which are convolved already."""
        return self.compress_read(read).add_(self.compress_query(frame)), skip3, skip2

    def logits(self, per_object: Tensor, *shared: Tensor) -> Tensor:
        """m4 [O, D, h, w] and skip features to [O, 2, 4h, 4w]."""
        first, *rest = self.blocks
        m = first(per_object)
        for detail, block in zip(shared, rest, strict=True):
            m = block(upsampled(m, 2).add_(detail))  # [O, D, 2h, 2w], then [O, D, 4h, 4w]
        logits: Tensor = self.predict(m)
        return logits


class SharingLightDecoder(_SharingDecoder):
    """A `LightDecoder` whose skip convolutions include the gain."""

    def __init__(self, decoder: LightDecoder, objects_at_a_time: int | None) -> None:
        super().__init__(objects_at_a_time)
        self.light = decoder
        for skip in (decoder.skip3, decoder.skip2):
            skip.weight.mul_(SKIP_GAIN)

    def shared_work(self, read: Tensor, frame: Tensor, skip3: Tensor, skip2: Tensor) -> tuple[Tensor, ...]:
        """What was read, the frame's features, and the convolved skip features."""
        return read, frame, self.light.skip3(skip3), self.light.skip2(skip2)

    def logits(self, per_object: Tensor, *shared: Tensor) -> Tensor:
        """Read [O, Cv, h, w] and shared features to [O, 1, 4h, 4w]."""
        return self.light.logits(per_object, *shared)


def _in_parts(function: Callable[[Tensor], Tensor], per_object: Tensor, objects_at_a_time: int | None) -> Tensor:
    """Applies a function to at most `objects_at_a_time` objects at once; concatenates the results."""
    parts = [function(some) for some in torch.split(per_object, objects_at_a_time or len(per_object))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _check_one_frame(batch_index: Tensor | None) -> None:
    if batch_index is not None:
        raise ValueError("objects: found those of several frames, expected one frame: the network only infers")


def with_weights(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A copy of a convolution with other weights [K, C, k, k]."""
    found = deepcopy(conv)
    found.in_channels = weight.shape[1]
    found.weight = nn.Parameter(weight.clone(), requires_grad=False)
    found.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    return found
