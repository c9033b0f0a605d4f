"""A network made ready for inference: the same function with less to compute."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from stm_fast.network.backbone import Backbone
from stm_fast.network.bottleneck_layers import replace_bottlenecks
from stm_fast.network.compilation import compile_calls
from stm_fast.network.decoder import Decoder
from stm_fast.network.encoders import MemoryEncoder, QueryEncoder
from stm_fast.network.shared_trunk import LightDecoder
from stm_fast.network.shared_work import SharingDecoder, SharingMemoryEncoder, SharingQueryEncoder
from stm_fast.network.stm import STM
from stm_fast.network.winograd_layers import replace_convolutions
from stm_fast.ops import inverted_bottleneck, probabilities, winograd

_CACHE_LINE = 64
# of the pooled stem, on a CPU: at 480p the convolution's 17 are 1.9 MB where the whole map is 26.5 MB
_ROWS_AT_A_TIME = 8


def for_inference(
    model: STM,
    *,
    dtype: torch.dtype | None = None,
    objects_at_a_time: int | None = None,
    compile: str | None = None,
) -> STM:
    """A copy that only infers; results differ by rounding alone.

    BatchNorm with fixed statistics is a scale and a shift: the convolution before it takes them over. What objects
    share is computed once (:mod:`stm_fast.network.shared_work`). In float32 on a CPU, where the extension is there,
    convolutions of 3 x 3 take a quarter of the products (:mod:`stm_fast.ops.winograd`), with their activations and sums
    built in; and what follows the decoder is one pass over the frame (:mod:`stm_fast.ops.probabilities`), in half
    precision too. EfficientNet-Lite's bottlenecks are one operator each there, in float32 and bfloat16
    (:mod:`stm_fast.ops.inverted_bottleneck`).

    The copy has no gradients, stays on its device and in its dtype, and has other entries in its state dict: keep the
    original to train, load, save or move. It can be copied, pickled and sent to other processes unless it is compiled.

    Args:
        dtype: of the copy, by default the model's.
        objects_at_a_time: how many objects are encoded and decoded together: more keep a GPU busy, fewer take less
            memory. By default all on a GPU, and one on a CPU, where together they would be no faster.
        compile: a mode of torch.compile for the copy's parts (:mod:`stm_fast.network.compilation`).

    Raises:
        InputError: no such mode.
    """
    copy = deepcopy(model).eval().requires_grad_(False)
    weight = copy.decoder.compress.weight
    on_cpu = weight.device.type == "cpu"
    if objects_at_a_time is None and on_cpu:
        objects_at_a_time = 1
    if copy.memory_encoder is None:
        per_object = _prepare_shared(copy, objects_at_a_time)
    else:
        per_object = _prepare_published(
            copy, objects_at_a_time, _ROWS_AT_A_TIME if on_cpu and compile is None else None
        )
    # channels last on a GPU, too: the memory read wants the rows that this makes of keys and values
    copy.to(dtype or weight.dtype).to(memory_format=torch.channels_last)
    if on_cpu:
        if not inverted_bottleneck.absent_reasons():
            replace_bottlenecks(copy)
        if (dtype or weight.dtype) == torch.float32 and not winograd.absent_reasons():
            replace_convolutions(copy)
        copy.one_pass = (dtype or weight.dtype) in probabilities.DTYPES and not probabilities.absent_reasons()
        _lay_together(copy)
    if compile is not None:
        parts = [copy.query_encoder, copy.query_key_value, copy.memory_key_value]
        compile_calls([*((part, "forward") for part in parts), *per_object], compile)
        copy.compiled = True
    return copy


def _prepare_published(model: STM, objects_at_a_time: int | None, rows: int | None) -> list[tuple[nn.Module, str]]:
    """In place. Returns the methods, with their modules, that run for some objects at a time."""
    assert isinstance(model.memory_encoder, MemoryEncoder)
    assert isinstance(model.query_encoder, QueryEncoder)
    assert isinstance(model.decoder, Decoder)
    for encoder in (model.memory_encoder, model.query_encoder):
        _fold_stem(encoder)
        _fold_blocks(encoder)
    query_encoder = SharingQueryEncoder(model.query_encoder, model.decoder, rows)
    memory_encoder = SharingMemoryEncoder(model.memory_encoder, objects_at_a_time, rows)
    decoder = SharingDecoder(model.decoder, model.value_dim, objects_at_a_time)
    for name, part in (("query_encoder", query_encoder), ("memory_encoder", memory_encoder), ("decoder", decoder)):
        model.add_module(name, part)
    return [(memory_encoder, "features"), (decoder, "logits")]


def _prepare_shared(model: STM, objects_at_a_time: int | None) -> list[tuple[nn.Module, str]]:
    """The same for a shared trunk, whose light heads compute a frame's own part once as it is."""
    assert isinstance(model.decoder, LightDecoder)
    if isinstance(model.query_encoder, QueryEncoder):
        _fold_stem(model.query_encoder)
        _fold_blocks(model.query_encoder)
    model.decoder.prepare(objects_at_a_time)
    return [(model.decoder, "logits")]


def _lay_together(model: STM) -> None:
    """Moves parameters and buffers into one block of memory.

    What was made on the way to them leaves holes between them, 420 MiB for `stm_resnet50`, over which glibc's malloc
    spreads what it is asked for later: the peak of a frame of three objects at 480p was 20 to 60 MiB higher.
    """
    tensors = [*model.parameters(), *model.buffers()]
    block = torch.empty(sum(_padded_bytes(tensor) for tensor in tensors), dtype=torch.uint8).untyped_storage()
    first = 0
    for tensor in tensors:
        # a storage of its own inside the block, because pickle writes the whole storage of every tensor
        place = block[first : first + tensor.nbytes]
        laid = torch.empty(0, dtype=tensor.dtype).set_(place, 0, tensor.shape, tensor.stride())
        tensor.data = laid.copy_(tensor)
        first += _padded_bytes(tensor)


def _padded_bytes(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _CACHE_LINE) * _CACHE_LINE


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
