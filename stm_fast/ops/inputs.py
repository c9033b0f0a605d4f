"""The inputs and results of the backends of memory_read()."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from stm_fast.torch_private import in_functional_transform

# query, key, value, shrinkage, selection, lengths
Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class ReadInputs(NamedTuple):
    """One checked call of memory_read(): shapes, dtypes and devices agree, defaults are filled in.

    Bq and Bk are B or 1. `shrinkage` and `selection` have the accumulation dtype. All fields but the last are the
    arguments of the operators, in that order.
    """

    query: Tensor  # [Bq, M, Ck]
    key: Tensor  # [Bk, N, Ck]
    value: Tensor  # [B, N, Cv]
    shrinkage: Tensor | None  # [B or Bk, N]
    selection: Tensor | None  # [Bq, M, Ck]
    lengths: Tensor | None  # [B] int32
    scale: float
    similarity: int  # index in choices.SIMILARITIES
    query_norm: bool
    top_k: int  # 0: dense
    return_usage: bool = False
    return_top_k: bool = False  # only if top_k is not 0
    return_lse: bool = True  # False: a reader made for such calls may leave it out

    @property
    def tensors(self) -> Tensors:
        return self[:6]

    @property
    def score_tensors(self) -> tuple[Tensor | None, ...]:
        return self.query, self.key, self.shrinkage, self.selection

    @property
    def shares_affinity(self) -> bool:
        """Whether all objects have the same affinity."""
        shared = all(tensor is None or tensor.shape[0] == 1 for tensor in self.score_tensors)
        return shared and self.lengths is None

    @property
    def options(self) -> tuple[float, int, bool, int, bool, bool]:
        return self[6:12]


class ReadResult(NamedTuple):
    out: Tensor  # [B, M, Cv], dtype of value
    lse: Tensor  # [B, M], accumulation dtype
    usage: Tensor | None = None  # [B, N], accumulation dtype
    weights: Tensor | None = None  # [B, M, k], accumulation dtype
    rows: Tensor | None = None  # [B, M, k] int64


# what a read returns to memory_read(): out, lse, usage, weights and rows, of which a known call may leave some out
Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
# takes tensors with the same layouts as those it was made for, and uses the same options
Reader = Callable[[Unpack[Tensors]], Results]


def requires_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd records a read of these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def in_transform() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp) is active."""
    return not torch.compiler.is_compiling() and in_functional_transform()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every other dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_channels(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers [...] as the sum of channels [..., 1 or 3] of a dtype: three 16-bit ones have the digits of float32.

    As channels of a query or key, against ones in the other, they are added to scores.
    """
    channels = []
    for _ in range(1 if dtype.itemsize > 2 else 3):
        channels.append(numbers.to(dtype))
        numbers = numbers - channels[-1]
    return torch.stack(channels, dim=-1)


def is_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turns autocast off for a backend: it would cast the backend's own float32 products again."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device.type) else nullcontext()
