"""Prepares a network for inference: the same function in fewer operations."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from stm_fast.errors import InputError
from stm_fast.network.aggregation import EPSILON
from stm_fast.network.backbone import Backbone
from stm_fast.network.decoder import Decoder
from stm_fast.network.deploy import bottlenecks, convolutions, stems, winograd
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
from stm_fast.ops import cpp_ops, probabilities


class OnePassSTM(STM):
    """An STM that computes probabilities from the decoder's logits in one operator."""

    def probabilities(self, read: Tensor, features: QueryFeatures) -> Tensor:
        """As in `STM`, up to rounding."""
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
    """A copy for inference, one frame at a time; results differ by rounding alone.

    BatchNorm is folded into convolutions, and what objects share is computed once
    (:mod:`stm_fast.network.deploy.shared_work`). On a CPU, the operators of the C++ extension replace parts of it.

    The copy has no gradients and another state dict, and cannot be moved to another device or dtype: keep the original
    to train, load, save or move. It can be copied and pickled unless it is compiled.

    Args:
        model: on the device that the copy is for.
        dtype: of the copy, by default the model's.
        objects_at_a_time: number of objects to encode and decode together: more keep a GPU busy, fewer take less
            memory. By default all on a GPU, and one on a CPU, where more would be no faster.
        compile: a mode of torch.compile for the copy's parts (:mod:`stm_fast.network.deploy.compilation`).

    Raises:
        InputError: no such mode, or a model that is such a copy.
    """
    if model.prepared:
        raise InputError("model: found a network prepared for inference, expected the original")
    copy = deepcopy(model).eval().requires_grad_(False)
    copy.prepared = True
    weight = copy.decoder.compress.weight
    dtype = dtype or weight.dtype
    on_cpu = weight.device.type == "cpu"
    per_object = _share_work(copy, 1 if objects_at_a_time is None and on_cpu else objects_at_a_time)
    # channels last on a GPU, too: then keys and values have the row layout of the memory read
    copy.to(dtype).to(memory_format=torch.channels_last)
    if on_cpu:
        _use_cpu_operators(copy, dtype)
    if compile is not None:
        if isinstance(copy.memory_encoder, stems.PooledMemoryEncoder):
            per_object.append((copy.memory_encoder, "features_of_one"))
        parts = [copy.query_encoder, copy.query_key_value, copy.memory_key_value]
        compile_calls([*((part, "forward") for part in parts), *per_object], compile)
        copy.compiled = True
    return copy


def _use_cpu_operators(model: STM, dtype: torch.dtype) -> None:
    """Replaces parts by operators of the C++ extension, in place, if it is available."""
    if not bottlenecks.absent_reasons():
        bottlenecks.replace_bottlenecks(model)
    if not convolutions.absent_reasons():
        stems.replace_stems(model)
        convolutions.replace_convolutions(model)
    if not winograd.absent_reasons() and cpp_ops.convolves(dtype):
        winograd.replace_convolutions(model)
    if dtype in probabilities.DTYPES and not probabilities.absent_reasons():
        model.__class__ = OnePassSTM


def _share_work(model: STM, objects_at_a_time: int | None) -> list[tuple[nn.Module, str]]:
    """Replaces encoders and decoder, in place. Returns modules and methods that run on some objects at a time."""
    fold_batch_norm(model)
    if isinstance(model.decoder, LightDecoder):
        light = SharingLightDecoder(model.decoder, objects_at_a_time)
        model.add_module("decoder", light)
        return [(light, "logits")]
    assert isinstance(model.memory_encoder, MemoryEncoder)
    assert isinstance(model.query_encoder, QueryEncoder)
    assert isinstance(model.decoder, Decoder)
    query_encoder = SharingQueryEncoder(model.query_encoder, model.decoder)
    memory_encoder = SharingMemoryEncoder(model.memory_encoder, objects_at_a_time)
    decoder = SharingDecoder(model.decoder, model.value_dim, objects_at_a_time)
    for name, part in (("query_encoder", query_encoder), ("memory_encoder", memory_encoder), ("decoder", decoder)):
        model.add_module(name, part)
    return [(memory_encoder, "features"), (decoder, "logits")]


def fold_batch_norm(model: STM) -> None:
    """Folds BatchNorm into convolutions, in place: its statistics are stored ones."""
    for encoder in model.encoders():
        if isinstance(encoder, Backbone):
            _fold_stem(encoder)
            _fold_blocks(encoder)


def _fold_stem(encoder: Backbone) -> None:
    """Folds the BatchNorm after the sum of the stem's convolutions: all are scaled, one gets the shift."""
    norm = encoder.bn1
    if isinstance(encoder, MemoryEncoder):
        assert norm.running_var is not None
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).view(-1, 1, 1, 1)
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
