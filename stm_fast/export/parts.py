"""The parts of a network that are exported: modules that take and return tensors alone, for frames of any size."""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stm_fast.errors import InputError
from stm_fast.export.sizes import FRAMES, HEIGHT, OBJECTS, QUERIES, ROWS, WIDTH, Shape, Size, example
from stm_fast.network.architecture import STRIDE
from stm_fast.network.deploy.deployment import fold_batch_norm
from stm_fast.network.stm import STM, QueryFeatures, mask_planes
from stm_fast.ops import memory_read
from stm_fast.ops.layers import rows as as_rows


class Values(NamedTuple):
    """The shape and dtype of a tensor that a part takes or returns."""

    shape: Shape
    dtype: torch.dtype


class Part(NamedTuple):
    """A part of a network, and the tensors that it takes and returns, by name and in order."""

    name: str
    module: nn.Module
    inputs: dict[str, Values]
    outputs: dict[str, Values]

    def examples(self) -> tuple[Tensor, ...]:
        """Inputs with which it is traced."""
        return tuple(example(*values) for values in self.inputs.values())


class _EncodeQuery(nn.Module):
    """`STM.encode_query`."""

    def __init__(self, model: STM) -> None:
        super().__init__()
        self.model = _only(model, "query_encoder", "query_key_value")

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.model.encode_query(frame)
        return features.key, features.value, features.r3, features.r2


class _Memorize(nn.Module):
    """`STM.memorize` of one frame, with an encoder of its own; returns rows."""

    def __init__(self, model: STM) -> None:
        super().__init__()
        self.model = _only(model, "memory_encoder", "memory_key_value")

    def forward(self, frame: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next(self.model.parameters()).dtype
        return _memory_rows(*self.model.memory_of(frame.to(dtype), *mask_planes(masks, masks.sum(0), dtype)))


class _MemorizeFeatures(nn.Module):
    """`STM.memorize` of one frame from the features of `encode_query`, with a shared trunk; returns rows."""

    def __init__(self, model: STM) -> None:
        super().__init__()
        self.model = _only(model, "query_key_value", "memory_key_value")

    def forward(self, key: Tensor, value: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        # the frame is known by its features
        planes = mask_planes(masks, masks.sum(0), value.dtype)
        return _memory_rows(*self.model.memory_of(value, *planes, known=(key, value)))


class _MemoryRead(nn.Module):
    """`memory_read`."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, query: Tensor, memory_key: Tensor, memory_value: Tensor) -> Tensor:
        return memory_read(query, memory_key, memory_value, backend=self.backend)


class _Decode(nn.Module):
    """`STM.probabilities` of a frame without padding."""

    def __init__(self, model: STM) -> None:
        super().__init__()
        self.model = _only(model, "decoder")

    def forward(self, read: Tensor, value: Tensor, r3: Tensor, r2: Tensor) -> Tensor:
        # of the key, only the number of frames matters
        return self.model.probabilities(read, QueryFeatures(value, value, r3, r2))


def parts_of(model: STM, backend: str, dtype: torch.dtype) -> list[Part]:
    """The parts of a network, in the order of their use.

    Args:
        model: on the CPU.
        backend: of the memory read, as in :func:`stm_fast.memory_read`.
        dtype: of weights and features. Frames, masks and probabilities are in float32.

    Raises:
        InputError: a copy from `for_inference`, whose operators are not exported.
    """
    if model.prepared:
        raise InputError("model: found a network prepared for inference, expected the original")
    model = deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(model)
    model.to(dtype)
    seen = model.encode_query(torch.zeros(3, STRIDE, STRIDE))

    def frame(count: Size | int) -> Values:
        return Values((count, 3, STRIDE * HEIGHT, STRIDE * WIDTH), torch.float32)

    def features(count: Size | int) -> dict[str, Values]:
        scales = {"key": 1, "value": 1, "r3": 2, "r2": 4}
        channels = {name: getattr(seen, name).shape[1] for name in scales}
        return {n: Values((count, channels[n], scale * HEIGHT, scale * WIDTH), dtype) for n, scale in scales.items()}

    def rows(count: Size | str, width: int) -> Values:
        return Values((OBJECTS, count, width), dtype)

    def memory(count: Size | str) -> dict[str, Values]:
        return {"memory_key": rows(count, model.key_dim), "memory_value": rows(count, model.value_dim)}

    one = features(1)
    known = {"key": one["key"], "value": one["value"]} if model.architecture.shared_trunk else {"frame": frame(1)}
    masks = Values((OBJECTS, STRIDE * HEIGHT, STRIDE * WIDTH), torch.float32)
    query, read = rows(QUERIES, model.key_dim), rows(QUERIES, model.value_dim)
    read_map = Values((OBJECTS, model.value_dim, HEIGHT, WIDTH), dtype)
    probabilities = Values(("1+objects", *masks.shape[1:]), torch.float32)
    skip = {name: one[name] for name in ("value", "r3", "r2")}
    return [
        Part("encode_query", _EncodeQuery(model), {"frame": frame(FRAMES)}, features(FRAMES)),
        Part("memorize", _memorize(model), {**known, "masks": masks}, memory("height*width")),
        Part("memory_read", _MemoryRead(backend), {"query": query, **memory(ROWS)}, {"read": read}),
        Part("decode", _Decode(model), {"read": read_map, **skip}, {"probabilities": probabilities}),
    ]


def _memorize(model: STM) -> nn.Module:
    return _MemorizeFeatures(model) if model.architecture.shared_trunk else _Memorize(model)


def _memory_rows(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """[O, C, h, w] to [O, h * w, C], which is contiguous: callers append the rows of several frames."""
    return as_rows(key, "key").contiguous(), as_rows(value, "value").contiguous()


def _only(model: STM, *parts: str) -> STM:
    """A network with these parts alone: an export contains all weights of its module."""
    copy = deepcopy(model)
    for name in [name for name, _ in copy.named_children() if name not in parts]:
        delattr(copy, name)
    return copy
