"""A network prepared for inference: the same function with less to compute."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from stm_fast.network.aggregation import EPSILON
from stm_fast.network.backbone import Backbone
from stm_fast.network.decoder import Decoder
from stm_fast.network.deploy import bottlenecks, winograd
from stm_fast.network.deploy.compilation import compile_calls
from stm_fast.network.deploy.shared_work import (
    SharingDecoder,
    SharingLightDecoder,
    SharingMemoryEncoder,
    SharingQueryEncoder,
)
from stm_fast.network.encoders import MemoryEncoder, QueryEncoder
from stm_fast.network.shared_trunk import LightDecoder
from stm_fast.network.stm import STM, QueryFeatures
from stm_fast.ops import probabilities


class OnePassSTM(STM):
    """An STM whose probabilities are one operator from the decoder's logits on."""

    def probabilities(self, read: Tensor, features: QueryFeatures) -> Tensor:
        """As in `STM`, but for rounding."""
        self._check_read(read, features)
        logits = self.decoder(read, features.value, features.r3, features.r2, resized=False)  # [O, 1 or 2, H'/4, W'/4]
        return probabilities.object_probabilities(logits, features.pads, EPSILON)


def for_inference(
    model: STM,
    *,
    dtype: torch.dtype | None = None,
    objects_at_a_time: int | None = None,
    compile: str | None = None,
) -> STM:
    """A copy that only infers, one frame at a time; results differ by rounding alone.

    BatchNorm with fixed statistics is a scale and a shift: the convolution before it takes them over. What objects
    share is computed once (:mod:`stm_fast.network.deploy.shared_work`). On a CPU with the extension, in float32,
    convolutions of 3 x 3 take a quarter of the multiplications (:mod:`stm_fast.network.deploy.winograd`); in half
    precision too, what follows the decoder is one pass over the frame (:mod:`stm_fast.ops.probabilities`); and
    EfficientNet-Lite's bottlenecks are one operator each, in float32 and bfloat16
    (:mod:`stm_fast.network.deploy.bottlenecks`).

    The copy has no gradients, stays on its device and in its dtype, and has other entries in its state dict: keep the
    original to train, load, save or move. It can be copied, pickled and sent to other processes unless it is compiled.

    Args:
        dtype: of the copy, by default the model's.
        objects_at_a_time: how many objects are encoded and decoded together: more keep a GPU busy, fewer take less
            memory. By default all on a GPU, and one on a CPU, where together they would be no faster.
        compile: a mode of torch.compile for the copy's parts (:mod:`stm_fast.network.deploy.compilation`).

    Raises:
        InputError: no such mode.
    """
    copy = deepcopy(model).eval().requires_grad_(False)
    weight = copy.decoder.compress.weight
    dtype = dtype or weight.dtype
    on_cpu = weight.device.type == "cpu"
    per_object = _share_work(copy, 1 if objects_at_a_time is None and on_cpu else objects_at_a_time)
    # channels last on a GPU, too: it gives keys and values the rows that the memory read needs
    copy.to(dtype).to(memory_format=torch.channels_last)
    if on_cpu:
        if not bottlenecks.absent_reasons():
            bottlenecks.replace_bottlenecks(copy)
        if dtype == torch.float32 and not winograd.absent_reasons():
            winograd.replace_convolutions(copy)
        if dtype in probabilities.DTYPES and not probabilities.absent_reasons():
            copy.__class__ = OnePassSTM
    if compile is not None:
        parts = [copy.query_encoder, copy.query_key_value, copy.memory_key_value]
        compile_calls([*((part, "forward") for part in parts), *per_object], compile)
        copy.compiled = True
    return copy


def _share_work(model: STM, objects_at_a_time: int | None) -> list[tuple[nn.Module, str]]:
    """In place. Returns the methods, with their modules, that run for some objects at a time."""
    for encoder in model.encoders():
        if isinstance(encoder, Backbone):
            _fold_stem(encoder)
            _fold_blocks(encoder)
    if isinstance(model.decoder, LightDecoder):
        light = SharingLightDecoder(model.decoder, objects_at_a_time)
        model.add_module("decoder", light)
        return [(light.light, "logits")]
    assert isinstance(model.memory_encoder, MemoryEncoder)
    assert isinstance(model.query_encoder, QueryEncoder)
    assert isinstance(model.decoder, Decoder)
    query_encoder = SharingQueryEncoder(model.query_encoder, model.decoder)
    memory_encoder = SharingMemoryEncoder(model.memory_encoder, objects_at_a_time)
    decoder = SharingDecoder(model.decoder, model.value_dim, objects_at_a_time)
    for name, part in (("query_encoder", query_encoder), ("memory_encoder", memory_encoder), ("decoder", decoder)):
        model.add_module(name, part)
    return [(memory_encoder, "features"), (decoder, "logits")]


def _fold_stem(encoder: Backbone) -> None:
    """The stem's convolutions are added up before their BatchNorm: each is scaled, one takes the shift."""
    norm = encoder.bn1
    if isinstance(encoder, MemoryEncoder):
        scale = _scale(norm)
        encoder.conv1_mask.weight.mul_(scale)
        encoder.conv1_others.weight.mul_(scale)
    encoder.conv1 = fuse_conv_bn_eval(encoder.conv1, norm)
    encoder.add_module("bn1", nn.Identity())


def _fold_blocks(encoder: Backbone) -> None:
    for block in (*encoder.layer1, *encoder.layer2, *encoder.layer3):
        for index in (1, 2, 3):
            norm = getattr(block, f"bn{index}", None)
            if norm is not None:
                setattr(block, f"conv{index}", fuse_conv_bn_eval(getattr(block, f"conv{index}"), norm))
                setattr(block, f"bn{index}", nn.Identity())
        if block.downsample is not None:
            block.downsample = fuse_conv_bn_eval(block.downsample[0], block.downsample[1])


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    """What BatchNorm multiplies with, for a weight ``[C, 1, k, k]``."""
    assert norm.running_var is not None
    return (norm.weight / torch.sqrt(norm.running_var + norm.eps)).view(-1, 1, 1, 1)
