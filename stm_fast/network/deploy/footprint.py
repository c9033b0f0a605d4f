"""Estimates the network's memory by a dry run on tensors without data."""

import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stm_fast.network.architecture import Architecture
from stm_fast.network.stm import STM
from stm_fast.torch_private import TorchDispatchMode, tree_leaves


@lru_cache(maxsize=64)
def activation_bytes(
    architecture: Architecture, size: tuple[int, int], full_size: tuple[int, int], objects: int, dtype: torch.dtype
) -> int:
    """Peak memory of one step of an engine in bytes, without the parameters.

    The step memorizes a frame, encodes and decodes the next one, and computes its masks at full size. The memory bank
    and its read are not included. Each convolution is assumed to copy its input and output to another layout.

    Args:
        size: height and width of the network's input.
        full_size: height and width of the video.
    """
    with torch.device("meta"):
        model = STM(**vars(architecture)).to(dtype)
        image, masks = torch.empty(3, *full_size), torch.empty(objects, *size)
    with torch.inference_mode(), _PeakOfTensors() as tensors:
        frame = interpolate(image[None], size)[0]
        key, value = model.memorize(frame, masks)
        del key, value
        features = model.encode_query(frame)
        read = features.value.new_empty(objects, model.value_dim, *features.value.shape[2:])
        prob = model.decode(read, features).softmax(0)  # [1 + O, h, w]
        interpolate(prob[None], full_size)[0].argmax(0)
    peak: int = tensors.peak_bytes
    return peak


# convolution with and without inference mode
_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default)


class _PeakOfTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the total size of live tensors that operators have created."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        if func in _CONVOLUTIONS:
            self.peak_bytes = max(self.peak_bytes, self._bytes + args[0].nbytes + result.nbytes)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        identity = storage._cdata
        if identity in self._seen:
            return
        self._seen.add(identity)
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._forget, identity, storage.nbytes())

    def _forget(self, identity: int, nbytes: int) -> None:
        self._seen.discard(identity)
        self._bytes -= nbytes
