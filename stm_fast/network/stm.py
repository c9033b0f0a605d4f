"""The Space-Time Memory network (Oh, Lee, Xu and Kim, ICCV 2019)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stm_fast.network.aggregation import soft_aggregation
from stm_fast.network.architecture import STRIDE, Architecture
from stm_fast.network.backbone import BACKBONES
from stm_fast.network.decoder import Decoder
from stm_fast.network.encoders import MemoryEncoder, QueryEncoder
from stm_fast.network.key_value import KeyValue
from stm_fast.network.padding import Pads, pad_to_multiple, unpad
from stm_fast.ops import MemoryRead

# how much an untrained memory encoder of unit keys sees of masks: more would part its keys from the query's
_FIRST_MASK_GAIN = 0.3


class QueryFeatures(NamedTuple):
    """What the network knows of a frame before it reads the memory; h = ceil(H / 16), w = ceil(W / 16)."""

    key: Tensor  # [B, Ck, h, w]
    value: Tensor  # [B, Cv, h, w]
    r3: Tensor  # [B, C3, 2h, 2w]; of a network made ready for inference [B, D, 2h, 2w]
    r2: Tensor  # [B, C2, 4h, 4w]; likewise [B, D, 4h, 4w]
    pads: Pads  # what was added around the frame


class STM(nn.Module):
    """Segments the objects of a frame by reading a memory of earlier frames and their masks.

    The network keeps no state between calls: `memorize` makes memory, whoever calls keeps it, and either `segment`
    reads all of it or the caller reads it and passes the outcome to `decode`. Frames of any size are padded with zeros
    to a multiple of 16 and predictions cropped back. BatchNorm stays in eval mode, in training too.

    Weights are drawn from PyTorch's global generator: seed it first. Frames are converted to the weights' dtype.

    Attributes:
        key_dim: channels of a key, Ck, with those of its position.
        value_dim: channels of a value, Cv.
        stride: pixels of a frame per pixel of a key, in each direction.
        architecture: the constructor's arguments.
        compiled: whether parts are compiled; what they return is then there until the next frame.

    Raises:
        ValueError: `backbone` is not one of `BACKBONES`.
    """

    stride = STRIDE
    compiled = False

    def __init__(
        self,
        backbone: str = "resnet50",
        key_dim: int = 128,
        value_dim: int = 512,
        decoder_dim: int = 256,
        unit_keys: bool = False,
        position_waves: int = 0,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(backbone, key_dim, value_dim, decoder_dim, unit_keys, position_waves)
        self.value_dim = value_dim
        self.memory_encoder = MemoryEncoder(backbone)
        self.query_encoder = QueryEncoder(backbone)
        r2_channels, r3_channels, r4_channels = BACKBONES[backbone].channels
        self.memory_key_value = KeyValue(r4_channels, key_dim, value_dim, unit_keys, position_waves)
        self.query_key_value = KeyValue(r4_channels, key_dim, value_dim, unit_keys, position_waves)
        self.key_dim = self.query_key_value.key_dim
        self.memory_read = MemoryRead()
        self.decoder = Decoder(2 * value_dim, r3_channels, r2_channels, decoder_dim)
        if unit_keys:
            self._compare_from_the_start()

    def memorize(self, frame: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Makes the memory of one frame, for each object its own.

        Args:
            frame: [3, H, W] or [1, 3, H, W] in [0, 1].
            masks: [O, H, W] soft masks of the objects in [0, 1], without background.

        Returns:
            key [O, Ck, h, w] and value [O, Cv, h, w] with h = ceil(H / 16), w = ceil(W / 16).

        Raises:
            ValueError: a shape other than these.
            TypeError: a frame that is not floating point.
        """
        frame, _ = self._padded(frame)
        if masks.ndim != 3:
            raise ValueError(f"masks: found shape {list(masks.shape)}, expected [O, H, W]")
        masks, _ = pad_to_multiple(masks.float(), self.stride)
        if frame.shape[0] != 1 or frame.shape[-2:] != masks.shape[-2:]:
            raise ValueError(
                f"frame and masks: found, padded, {list(frame.shape)} and {list(masks.shape)}, "
                "expected one frame and masks of its size"
            )
        others = (masks.sum(dim=0) - masks).clamp(0, 1)  # [O, H, W]
        r4 = self.memory_encoder(frame, masks[:, None].to(frame.dtype), others[:, None].to(frame.dtype))
        key, value = self.memory_key_value(r4)
        return key, value

    def encode_query(self, frame: Tensor) -> QueryFeatures:
        """Encodes a frame, once for all objects.

        Args:
            frame: [3, H, W] or [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: a shape other than these.
            TypeError: a frame that is not floating point.
        """
        frame, pads = self._padded(frame)
        r4, r3, r2 = self.query_encoder(frame)
        key, value = self.query_key_value(r4)
        return QueryFeatures(key, value, r3, r2, pads)

    def decode(self, read: Tensor, features: QueryFeatures) -> Tensor:
        """Turns what each object read from its memory into logits.

        Args:
            read: [O, Cv, h, w].
            features: of one frame, from `encode_query`.

        Returns:
            Logits [1 + O, H, W], float32, background first; softmax over the first dimension gives probabilities.

        Raises:
            ValueError: `read` does not have the shape of the features' value, or these are of several frames.
        """
        if read.ndim != 4 or read.shape[1:] != features.value.shape[1:]:
            raise ValueError(
                f"read: found shape {list(read.shape)}, expected [O, Cv, h, w] like features.value "
                f"{list(features.value.shape)}"
            )
        _check_one_frame(features)
        logits = self.decoder(read, features.value, features.r3, features.r2)  # [O, 2, H', W']
        probability = logits.float().softmax(dim=1)[:, 1]  # [O, H', W']
        return soft_aggregation(unpad(probability, features.pads))  # [1 + O, H, W]

    def segment(self, frame: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Segments a frame with all of the given memory, as published.

        Args:
            frame: [3, H, W] or [1, 3, H, W] in [0, 1].
            keys: [O, Ck, T, h, w], the keys of T memorized frames.
            values: [O, Cv, T, h, w].

        Returns:
            Logits [1 + O, H, W], float32, background first.

        Raises:
            ValueError: shapes other than these.
            TypeError: a frame that is not floating point.
        """
        if keys.ndim != 5 or values.ndim != 5 or keys.shape[:1] + keys.shape[2:] != values.shape[:1] + values.shape[2:]:
            raise ValueError(
                f"keys and values: found shapes {list(keys.shape)} and {list(values.shape)}, "
                "expected [O, Ck, T, h, w] and [O, Cv, T, h, w]"
            )
        features = self.encode_query(frame)
        _check_one_frame(features)
        query_key, query_value = (x.expand(len(keys), -1, -1, -1) for x in (features.key, features.value))
        merged, _ = self.memory_read(keys, values, query_key, query_value)  # [O, 2 Cv, h, w]
        return self.decode(merged[:, : self.value_dim], features)

    def forward(self, frame: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same as `segment`."""
        return self.segment(frame, keys, values)

    def _compare_from_the_start(self) -> None:
        """Both encoders begin alike: what looks alike has like keys before anything is learnt."""
        self.memory_encoder.load_state_dict(self.query_encoder.state_dict(), strict=False)
        self.memory_key_value.key.load_state_dict(self.query_key_value.key.state_dict())
        for conv in (self.memory_encoder.conv1_mask, self.memory_encoder.conv1_others):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            with torch.no_grad():
                conv.weight.mul_(_FIRST_MASK_GAIN)

    def _padded(self, frame: Tensor) -> tuple[Tensor, Pads]:
        if not frame.is_floating_point():
            raise TypeError(f"frame: found {frame.dtype}, expected a floating point dtype with values in [0, 1]")
        if frame.ndim not in (3, 4) or frame.shape[-3] != 3:
            raise ValueError(f"frame: found shape {list(frame.shape)}, expected [3, H, W] or [B, 3, H, W]")
        batch = frame if frame.ndim == 4 else frame[None]  # [B, 3, H, W]
        return pad_to_multiple(batch.to(self.query_encoder.mean.dtype), self.stride)


def _check_one_frame(features: QueryFeatures) -> None:
    if len(features.key) != 1:
        raise ValueError(f"frame: found features of {len(features.key)} frames, expected those of one")
