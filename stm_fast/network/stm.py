"""The Space-Time Memory network (Oh, Lee, Xu and Kim, ICCV 2019)."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stm_fast.network.aggregation import soft_aggregation
from stm_fast.network.architecture import RANGES, STRIDE, Architecture
from stm_fast.network.decoder import Decoder
from stm_fast.network.efficientnet import LITE, EfficientNetLite
from stm_fast.network.encoders import BACKBONES, MemoryEncoder, QueryEncoder
from stm_fast.network.key_value import KeyValue
from stm_fast.network.object_batch import ObjectBatch
from stm_fast.network.padding import Pads, pad_to_multiple, unpad
from stm_fast.network.shared_trunk import CELLS, POSITION_CHANNELS, LightDecoder, MaskValue, SharedKeyValue
from stm_fast.ops import MemoryRead

# initial gain of the mask convolutions with unit keys: with more, memory keys would differ from query keys
_INITIAL_MASK_GAIN = 0.3


class QueryFeatures(NamedTuple):
    """Features of a frame before the memory is read; h = ceil(H / 16), w = ceil(W / 16)."""

    key: Tensor  # [B, Ck, h, w]
    value: Tensor  # [B, Cv, h, w]; of a shared trunk [B, Cv - 16, h, w]
    r3: Tensor  # [B, C3, 2h, 2w]; after `for_inference`, it may be [B, D, 2h, 2w]
    r2: Tensor  # [B, C2, 4h, 4w]; likewise [B, D, 4h, 4w]
    pads: Pads = (0, 0, 0, 0)  # around the frame


class STM(nn.Module):
    """Segments the objects of a frame by reading a memory of earlier frames and their masks.

    The network keeps no state between calls: `memorize` returns keys and values, which the caller stores. Either
    `segment` reads all of them, or the caller reads them and passes the result to `decode`. Frames of any size are
    padded with zeros to a multiple of 16, and predictions are cropped. BatchNorm always uses stored statistics.

    Weights are initialized from PyTorch's global generator. Frames are converted to the weights' dtype.

    Attributes:
        key_dim: channels of a key, Ck, including position channels.
        value_dim: channels of a value, Cv.
        stride: pixels of a frame per pixel of a key, in each direction.
        architecture: the constructor's arguments.
        min_size: frames whose shorter side is below this are upscaled by `VideoSegmenter`, because it suits the
            weights; it is loaded and saved with them.
        prepared: whether it is a copy from `for_inference`.
        compiled: whether parts are compiled; their results are then only valid until the next frame.

    With `shared_trunk`, one trunk encodes a frame for query and memory, followed by light heads
    (:mod:`stm_fast.network.shared_trunk`). Their keys are normalized and contain positions, so `unit_keys` and
    `position_waves` do not apply.

    Raises:
        ValueError: `backbone` is not in `BACKBONES`, a number is out of range, or options are incompatible.
    """

    stride = STRIDE
    min_size = 1
    prepared = False
    compiled = False
    # None with a shared trunk, where the query encoder also encodes frames for the memory
    memory_encoder: MemoryEncoder | None
    query_encoder: QueryEncoder | EfficientNetLite
    memory_key_value: KeyValue | MaskValue
    query_key_value: KeyValue | SharedKeyValue
    decoder: Decoder | LightDecoder

    def __init__(
        self,
        backbone: str = "resnet50",
        key_dim: int = 128,
        value_dim: int = 512,
        decoder_dim: int = 256,
        unit_keys: bool = False,
        position_waves: int = 0,
        shared_trunk: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(
            backbone, key_dim, value_dim, decoder_dim, unit_keys, position_waves, shared_trunk
        )
        _check(self.architecture)
        self.value_dim = value_dim
        self.memory_read = MemoryRead()
        if shared_trunk:
            self._build_shared()
        else:
            self._build_published()
        self.key_dim = self.query_key_value.key_dim

    def _build_published(self) -> None:
        arch = self.architecture
        self.memory_encoder = MemoryEncoder(arch.backbone)
        self.query_encoder = QueryEncoder(arch.backbone)
        r2_channels, r3_channels, r4_channels = BACKBONES[arch.backbone].channels
        heads = (r4_channels, arch.key_dim, arch.value_dim, arch.unit_keys, arch.position_waves)
        self.memory_key_value = KeyValue(*heads)
        self.query_key_value = KeyValue(*heads)
        self.decoder = Decoder(2 * arch.value_dim, r3_channels, r2_channels, arch.decoder_dim)
        if arch.unit_keys:
            self._align_encoders()

    def _build_shared(self) -> None:
        arch = self.architecture
        layout = BACKBONES[arch.backbone]
        r2_channels, r3_channels, _ = layout.channels
        frame_dim = arch.value_dim - CELLS
        self.memory_encoder = None
        trunk = EfficientNetLite if arch.backbone in LITE else QueryEncoder
        self.query_encoder = trunk(arch.backbone)
        self.query_key_value = SharedKeyValue(layout.maps, arch.key_dim, frame_dim)
        self.memory_key_value = MaskValue(frame_dim, arch.value_dim)
        self.decoder = LightDecoder(arch.value_dim, frame_dim, r3_channels, r2_channels, arch.decoder_dim)

    def memorize(
        self,
        frame: Tensor,
        masks: Tensor,
        known: tuple[Tensor, Tensor] | None = None,
        objects: ObjectBatch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes the memory of a frame, separately for each object.

        Args:
            frame: [3, H, W] or [1, 3, H, W] in [0, 1]; with `objects` [B, 3, H, W].
            masks: [O, H, W] soft masks of the objects in [0, 1], without background.
            known: key and value from `encode_query` of the same frame, if available, for a shared trunk to reuse.
            objects: assigns objects to frames; None: all are in the one frame.

        Returns:
            key [O, Ck, h, w] and value [O, Cv, h, w] with h = ceil(H / 16), w = ceil(W / 16).

        Raises:
            ValueError: other shapes.
            TypeError: `frame` is not floating point.
        """
        frame, _ = self._padded(frame)
        if masks.ndim != 3:
            raise ValueError(f"masks: found shape {list(masks.shape)}, expected [O, H, W]")
        masks, _ = pad_to_multiple(masks.float(), self.stride)
        frames = 1 if objects is None else len(objects.counts)
        if frame.shape[0] != frames or frame.shape[-2:] != masks.shape[-2:]:
            raise ValueError(
                f"frame and masks: found, padded, {list(frame.shape)} and {list(masks.shape)}, "
                f"expected [{frames}, 3, H, W] and [O, H, W] of the same size"
            )
        together = masks.sum(0) if objects is None else objects.scatter(masks).sum(1)[objects.batch_index]
        planes = mask_planes(masks, together, frame.dtype)
        return self.memory_of(frame, *planes, None if objects is None else objects.batch_index, known)

    def encode_query(self, frame: Tensor) -> QueryFeatures:
        """Encodes a frame, once for all objects.

        Args:
            frame: [3, H, W] or [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: other shapes.
            TypeError: `frame` is not floating point.
        """
        frame, pads = self._padded(frame)
        r4, r3, r2 = self.query_encoder(frame)
        key, value = self.query_key_value(r4)
        return QueryFeatures(key, value, r3, r2, pads)

    def decode(self, read: Tensor, features: QueryFeatures, objects: ObjectBatch | None = None) -> Tensor:
        """Decodes what each object read from its memory.

        Args:
            read: [O, Cv, h, w].
            features: of one frame, from `encode_query`; with `objects`, of B frames.
            objects: assigns objects to frames; None: all are in the one frame.

        Returns:
            Logits [1 + O, H, W], float32, background first; softmax over the first dimension gives probabilities. With
            `objects`, [B, 1 + O, H, W], where O is the largest number of objects in a frame; frames with fewer are
            filled with -inf.

        Raises:
            ValueError: shapes that do not match, or features of another number of frames.
        """
        self._check_read(read, features, objects)
        if objects is None:
            return soft_aggregation(unpad(self.probability_of(read, features), features.pads))  # [1 + O, H, W]
        probability = unpad(self.probability_of(read, features, objects.batch_index), features.pads)
        logits = soft_aggregation(objects.scatter(probability), dim=1)  # [B, 1 + O, H, W]
        return logits.masked_fill(objects.absent()[..., None, None], -torch.inf)

    def probabilities(self, read: Tensor, features: QueryFeatures) -> Tensor:
        """The softmax of `decode`'s logits: [1 + O, H, W], float32, background first. Raises as `decode` does."""
        return self.decode(read, features).softmax(0)

    def segment(self, frame: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Segments a frame, reading all of the given memory, as published.

        Args:
            frame: [3, H, W] or [1, 3, H, W] in [0, 1].
            keys: [O, Ck, T, h, w], the keys of T memorized frames.
            values: [O, Cv, T, h, w].

        Returns:
            Logits [1 + O, H, W], float32, background first.

        Raises:
            ValueError: other shapes.
            TypeError: a frame that is not floating point.
        """
        if keys.ndim != 5 or values.ndim != 5 or keys.shape[:1] + keys.shape[2:] != values.shape[:1] + values.shape[2:]:
            raise ValueError(
                f"keys and values: found shapes {list(keys.shape)} and {list(values.shape)}, "
                "expected [O, Ck, T, h, w] and [O, Cv, T, h, w]"
            )
        features = self.encode_query(frame)
        _check_frames(features, None)
        query_key, query_value = (x.expand(len(keys), -1, -1, -1) for x in (features.key, features.value))
        merged, _ = self.memory_read(keys, values, query_key, query_value)  # [O, Cv + Cv', h, w]
        return self.decode(merged[:, : self.value_dim], features)

    def forward(self, frame: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same as `segment`."""
        return self.segment(frame, keys, values)

    @classmethod
    def from_pretrained(cls, weights: str | Path, *, revision: str | None = None, **options: Any) -> "STM":
        """The network of a folder, a file or a repository of the Hugging Face hub, in float32 on the CPU.

        It can be trained and saved; :func:`stm_fast.load` prepares it for inference. Only a repository uses the
        network, through huggingface_hub, and only its ``config.json`` and ``model.safetensors`` are read.

        Args:
            weights: as for :func:`stm_fast.load`.
            revision: a branch, a tag or a commit of the repository.
            options: of `huggingface_hub.hf_hub_download`: `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            InputError: as :func:`stm_fast.load` does.
        """
        from stm_fast.network.loading import load_weights

        return load_weights(weights, revision, **options).eval()

    def save_pretrained(self, folder: str | Path, *, license: str = "unknown") -> None:
        """Writes ``model.safetensors``, ``config.json`` and a model card, ``README.md``, for `from_pretrained`.

        Earlier weights in the folder are replaced; a README.md is kept.

        Args:
            license: of the weights, for the header of the model card: an identifier of the hub such as "apache-2.0".

        Raises:
            InputError: a copy from `for_inference`, an invalid `license`, or files that cannot be written.
        """
        from stm_fast.network.folder import write_network

        write_network(self, Path(folder), license)

    def push_to_hub(self, repo_id: str, *, license: str = "unknown", **options: Any) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub; a README.md that is there is kept.

        Args:
            repo_id: ``user/repo``; the repository is created if it does not exist.
            license: as in `save_pretrained`.
            options: of `huggingface_hub.ModelHubMixin.push_to_hub`: `token`, `private`, `branch`, `commit_message`.

        Returns:
            The address of the commit.

        Raises:
            InputError: as `save_pretrained` does; huggingface_hub is missing, or the upload fails.
        """
        from stm_fast.network.places import repository

        found = repository(repo_id)
        from stm_fast.network.hub import push

        return push(self, found, license, **options)

    def encoders(self) -> list[MemoryEncoder | QueryEncoder | EfficientNetLite]:
        """The two encoders, or the shared one."""
        return [self.query_encoder] if self.memory_encoder is None else [self.memory_encoder, self.query_encoder]

    def freeze(self, stages: int) -> None:
        """Freezes the stem and the first `stages` stages of every encoder; 0 freezes nothing."""
        for encoder in self.encoders():
            for part in encoder.parts()[: stages + 1 if stages else 0]:
                part.requires_grad_(False)

    def memory_of(
        self,
        frames: Tensor,
        masks: Tensor,
        others: Tensor,
        batch_index: Tensor | None = None,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`memorize` for frames whose sides are multiples of the stride, given the masks of the other objects.

        Args:
            frames: [B, 3, H, W].
            masks: [O, 1, H, W], soft mask of each object.
            others: [O, 1, H, W], soft mask of the union of the other objects.
            batch_index: [O] int64, the frame of each object; None: one frame for all objects, or one for each object.
            known: key and value from `encode_query` of these frames, if available.

        Returns:
            key [O, Ck, h, w] and value [O, Cv, h, w].
        """
        key: Tensor
        value: Tensor
        if self.memory_encoder is not None:
            key, value = self.memory_key_value(self.memory_encoder(frames, masks, others, batch_index))
            return key, value
        query_key, frame = self.encode_query(frames)[:2] if known is None else known
        assert isinstance(self.query_key_value, SharedKeyValue)
        key = self.query_key_value.memory_key(query_key)
        count = masks.shape[0]
        key, frame = (x.expand(count, -1, -1, -1) if batch_index is None else x[batch_index] for x in (key, frame))
        return key, self.memory_key_value(frame, masks, others)

    def probability_of(self, read: Tensor, features: QueryFeatures, batch_index: Tensor | None = None) -> Tensor:
        """Each object's probability [O, H', W'], float32, independent of the others, from `read` [O, Cv, h, w].

        H' and W' are the padded sizes.
        """
        logits: Tensor = self.decoder(read, features.value, features.r3, features.r2, batch_index).float()
        # the light decoder has no channel for the background
        return logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)[:, 1]

    def _align_encoders(self) -> None:
        """Initializes both encoders alike, so that similar pixels have similar keys before training."""
        assert self.memory_encoder is not None
        assert isinstance(self.memory_key_value, KeyValue)
        self.memory_encoder.load_state_dict(self.query_encoder.state_dict(), strict=False)
        self.memory_key_value.key.load_state_dict(self.query_key_value.key.state_dict())
        for conv in (self.memory_encoder.conv1_mask, self.memory_encoder.conv1_others):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            with torch.no_grad():
                conv.weight.mul_(_INITIAL_MASK_GAIN)

    def _check_read(self, read: Tensor, features: QueryFeatures, objects: ObjectBatch | None = None) -> None:
        expected = [self.value_dim, *features.value.shape[2:]]
        if read.ndim != 4 or list(read.shape[1:]) != expected:
            raise ValueError(f"read: found shape {list(read.shape)}, expected [O, Cv, h, w] with {expected}")
        _check_frames(features, objects)

    def _padded(self, frame: Tensor) -> tuple[Tensor, Pads]:
        if not frame.is_floating_point():
            raise TypeError(f"frame: found {frame.dtype}, expected a floating point dtype with values in [0, 1]")
        if frame.ndim not in (3, 4) or frame.shape[-3] != 3:
            raise ValueError(f"frame: found shape {list(frame.shape)}, expected [3, H, W] or [B, 3, H, W]")
        batch = frame if frame.ndim == 4 else frame[None]  # [B, 3, H, W]
        return pad_to_multiple(batch.to(self.query_encoder.mean.dtype), self.stride)


def mask_planes(masks: Tensor, together: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The inputs of `STM.memory_of`: each object's mask, and that of the union of the others in its frame.

    Args:
        masks: [O, H, W] in [0, 1].
        together: [H, W], or [O, H, W] for objects of several frames: the sum of the masks in a frame.
        dtype: of the result.

    Returns:
        Two of [O, 1, H, W].
    """
    others = (together - masks).clamp(0, 1)  # [O, H, W]
    return masks[:, None].to(dtype), others[:, None].to(dtype)


def _check(arch: Architecture) -> None:
    if arch.backbone not in BACKBONES:
        raise ValueError(f"backbone: found {arch.backbone!r}, expected one of {', '.join(BACKBONES)}")
    if arch.backbone in LITE and not arch.shared_trunk:
        raise ValueError(f"backbone: found {arch.backbone!r} without shared_trunk, expected shared_trunk=True with it")
    for name, (least, most) in RANGES.items():
        number = getattr(arch, name)
        if not least <= number <= most:
            raise ValueError(f"{name}: found {number}, expected {least} to {most}")
    if not arch.shared_trunk:
        return
    if arch.unit_keys or arch.position_waves:
        raise ValueError(f"shared_trunk: found it in {arch}, expected neither unit_keys nor position_waves with it")
    for name, width, least in (("key_dim", arch.key_dim, POSITION_CHANNELS), ("value_dim", arch.value_dim, CELLS)):
        if width <= least:
            raise ValueError(f"{name}: found {width} with shared_trunk, expected more than {least}")


def _check_frames(features: QueryFeatures, objects: ObjectBatch | None) -> None:
    expected = 1 if objects is None else len(objects.counts)
    if len(features.key) != expected:
        raise ValueError(f"frame: found features of {len(features.key)} frames, expected those of {expected}")
