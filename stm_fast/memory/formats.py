"""Formats of memory rows: floats, or int8 and fp8 with scales.

A slot is one frame of one object: R = h*w rows of key (Ck) and value (Cv). A format encodes it as fields, each
[R, W] (per row) or [1, W] (per slot), and decodes fields to rows.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stm_fast.ops.quantized import PADDED_ROWS, QuantizedMemory, centered_and_scaled

Fields = dict[str, Tensor]


class Field(NamedTuple):
    """The shape of one field of a slot."""

    rows: int  # R, or 1 if shared by the whole slot
    width: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.rows * self.width * self.dtype.itemsize


class Format(Protocol):
    """How rows are stored."""

    def fields(self, rows: int, key_dim: int, value_dim: int) -> dict[str, Field]:
        """The fields of a slot."""

    def keeps(self, dtype: torch.dtype) -> bool:
        """Whether a model of this dtype reads rows as stored, without a copy."""

    def encode(self, key: Tensor, value: Tensor, earlier: Fields | None = None) -> Fields:
        """The fields, each [rows, W], of one slot: key [R, Ck], value [R, Cv].

        With the slot's `earlier` fields, rows that were decoded from them keep their bits, as far as the others allow.
        """

    def decode(self, fields: Fields, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Fields [O, slots, rows, W] to key [O, slots*R, Ck] and value [O, slots*R, Cv]."""

    def as_kept(self, fields: Fields) -> QuantizedMemory | None:
        """A view of the fields if a read multiplies their bytes; None if it takes the output of `decode`."""


class FloatFormat:
    """Rows in one float dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def fields(self, rows: int, key_dim: int, value_dim: int) -> dict[str, Field]:
        return {"key": Field(rows, key_dim, self._dtype), "value": Field(rows, value_dim, self._dtype)}

    def keeps(self, dtype: torch.dtype) -> bool:
        return dtype == self._dtype

    def encode(self, key: Tensor, value: Tensor, earlier: Fields | None = None) -> Fields:
        return {"key": key.to(self._dtype), "value": value.to(self._dtype)}

    def decode(self, fields: Fields, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return fields["key"].to(dtype).flatten(1, 2), fields["value"].to(dtype).flatten(1, 2)

    def as_kept(self, fields: Fields) -> QuantizedMemory | None:
        return None


class ScaledFormat:
    """One byte per element: keys centered on their slot's mean and scaled per row, values scaled per channel and slot.

    A mean shared by all keys of a read adds the same amount to every score of a query and cancels in the softmax, so
    centering costs no accuracy and removes the largest part of a key. Here each slot has its own mean, which decoding
    adds again: scores and lse are those of the original keys, and parts merge without correction.

    Args:
        dtype: torch.int8 or torch.float8_e4m3fn.
        decoded: whether a read decodes rows to floats; otherwise it multiplies them as stored, for which fp8 values are
            stored by channel, [Cv, R] with R rounded up to a multiple of 16.
    """

    def __init__(self, dtype: torch.dtype, *, decoded: bool = True) -> None:
        self._dtype = dtype
        self._decoded = decoded
        self._by_channel = not decoded and dtype.is_floating_point

    def fields(self, rows: int, key_dim: int, value_dim: int) -> dict[str, Field]:
        padded = rows + -rows % PADDED_ROWS
        value = (value_dim, padded) if self._by_channel else (rows, value_dim)
        return {
            "key": Field(rows, key_dim, self._dtype),
            "key_scale": Field(rows, 1, torch.float32),
            "key_mean": Field(1, key_dim, torch.float32),
            "value": Field(*value, self._dtype),
            "value_scale": Field(1, value_dim, torch.float32),
        }

    def keeps(self, dtype: torch.dtype) -> bool:
        return not self._decoded

    def encode(self, key: Tensor, value: Tensor, earlier: Fields | None = None) -> Fields:
        kept = () if earlier is None else (earlier[name].to(key.device) for name in ("key_mean", "value_scale"))
        memory = centered_and_scaled(key, value, self._dtype, *kept)
        if self._by_channel:
            padding = 0, -len(value) % PADDED_ROWS
            memory = memory._replace(value=torch.nn.functional.pad(memory.value.mT, padding))  # [Cv, R and padding]
        return memory._asdict()

    def decode(self, fields: Fields, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        key = fields["key"].float().mul_(fields["key_scale"]).add_(fields["key_mean"])  # [O, slots, R, Ck]
        value = self._value(fields).float().mul_(fields["value_scale"])  # [O, slots, R, Cv]
        return key.to(dtype).flatten(1, 2), value.to(dtype).flatten(1, 2)

    def as_kept(self, fields: Fields) -> QuantizedMemory | None:
        if self._decoded:
            return None
        return QuantizedMemory(**fields | {"value": self._value(fields)})

    def _value(self, fields: Fields) -> Tensor:
        """A view [O, slots, R, Cv]."""
        value = fields["value"]
        return value[..., : fields["key"].shape[2]].mT if self._by_channel else value


def format_of(storage: str, model_dtype: torch.dtype, *, decoded: bool = True) -> Format:
    """The format named by MemoryConfig.storage, for a model of this dtype; `decoded` as in ScaledFormat."""
    if storage == "model":
        return FloatFormat(model_dtype)
    if storage in ("int8", "fp8"):
        return ScaledFormat(torch.int8 if storage == "int8" else torch.float8_e4m3fn, decoded=decoded)
    dtype: torch.dtype = getattr(torch, storage)
    return FloatFormat(dtype)
