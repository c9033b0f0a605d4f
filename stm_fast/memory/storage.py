"""Storage of memory rows: the interface, and rows on the model's device, in one tensor per field.

O objects; a slot is one frame of one object, R = h*w rows.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stm_fast.memory.formats import Field, Fields, Format
from stm_fast.ops.inputs import accumulation_dtype
from stm_fast.ops.quantized import QuantizedMemory

# rows that must be decoded are decoded in parts of about this many bytes
SCRATCH_BYTES = 2**25


class FrameLayout(NamedTuple):
    """The layout common to all frames of a bank."""

    rows: int  # R = h*w
    key_dim: int
    value_dim: int
    dtype: torch.dtype  # of the model
    device: torch.device

    @property
    def slot_bytes(self) -> int:
        """Size of a slot in the model's dtype."""
        return self.rows * (self.key_dim + self.value_dim) * self.dtype.itemsize


class Part(NamedTuple):
    """Consecutive slots of every object, ready to be read."""

    key: Tensor  # [O, slots*R, Ck]
    value: Tensor  # [O, slots*R, Cv]
    counts: list[int]  # valid slots of each object

    def slots(self, rows: int) -> Iterator["Part"]:
        """Its slots, as parts of one slot each."""
        for slot in range(self.key.shape[1] // rows):
            place = slice(slot * rows, (slot + 1) * rows)
            counts = [int(slot < count) for count in self.counts]
            yield Part(self.key[:, place], self.value[:, place], counts)


class QuantizedPart(NamedTuple):
    """Like `Part`, but as stored, with one byte per element."""

    memory: QuantizedMemory
    counts: list[int]

    def slots(self, rows: int) -> Iterator["QuantizedPart"]:
        """Its slots, as parts of one slot each."""
        for slot in range(self.memory.key.shape[1]):
            counts = [int(slot < count) for count in self.counts]
            yield QuantizedPart(self.memory.slots(slot, slot + 1), counts)


def part_of(row_format: Format, dtype: torch.dtype, fields: Fields, counts: list[int]) -> Part | QuantizedPart:
    """A part from its fields [O, slots, rows, W]: as stored if it is read that way, otherwise decoded to `dtype`."""
    memory = row_format.as_kept(fields)
    if memory is not None:
        return QuantizedPart(memory, counts)
    return Part(*row_format.decode(fields, dtype), counts)


def decoded_slot(row_format: Format, layout: FrameLayout, fields: Fields) -> tuple[Tensor, Tensor]:
    """Copies of key [R, Ck] and value [R, Cv] of a slot, as `Storage.rows` returns them."""
    stored = {name: rows[None, None].to(layout.device, copy=True) for name, rows in fields.items()}
    key, value = row_format.decode(stored, accumulation_dtype(layout.dtype))  # [1, R, Ck] and [1, R, Cv]
    return key[0], value[0]


class Storage(Protocol):
    """Slots 0, 1, ... of every object. A slot is written as a whole."""

    @property
    def nbytes(self) -> int:
        """Size of the slots, spare ones included."""

    def slots_within(self, nbytes: int, objects: int) -> int:
        """How many slots per object fit into `nbytes` for this many objects."""

    def reserve(self, objects: int, slots: int, cap: int | None) -> None:
        """Makes room for this many objects and slots per object, never for more than `cap` slots."""

    def write(self, index: int, slot: int, key: Tensor, value: Tensor, *, again: bool = False) -> None:
        """Writes key [R, Ck] and value [R, Cv] to a slot of one object.

        With `again`, rows that were read from the slot keep their bits, as far as its format allows.
        """

    def rows(self, index: int, slot: int) -> tuple[Tensor, Tensor]:
        """Copies of key [R, Ck] and value [R, Cv] of a slot, in float32, or float64 if the model is."""

    def slot(self, index: int, slot: int) -> Fields:
        """Writable views [rows, W] of the fields of a slot that was written."""

    def parts(self, counts: list[int]) -> Iterator[Part | QuantizedPart]:
        """The first `counts[index]` slots of every object, ready to be read. A part is valid until the next one."""

    def keep(self, indices: list[int]) -> None:
        """Forgets all objects but these."""

    def state_dict(self, counts: list[int]) -> dict[str, Tensor]:
        """The first `counts[index]` slots of every object, as stored."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the output of `state_dict` of an equal storage."""

    def close(self) -> None:
        """Releases everything."""


class DeviceStorage:
    """Rows on the model's device, in one tensor [O, slots, rows, W] per field.

    It is allocated at its known size, or that of its cap, or grows by doubling. Spare rows are zero.

    Args:
        known_slots: how many slots each object will have, if known.
    """

    def __init__(self, layout: FrameLayout, row_format: Format, known_slots: int | None = None) -> None:
        self._layout, self._format, self._known_slots = layout, row_format, known_slots
        self._fields = row_format.fields(layout.rows, layout.key_dim, layout.value_dim)
        self._tensors = {name: _zero_slots(field, 0, 0, layout.device) for name, field in self._fields.items()}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def slots_within(self, nbytes: int, objects: int) -> int:
        return nbytes // (objects * sum(field.nbytes for field in self._fields.values()))

    def reserve(self, objects: int, slots: int, cap: int | None) -> None:
        held_objects, held = self._tensors["key"].shape[:2]
        size = held
        if slots > held:
            size = max(slots, self._known_slots or cap or 0, 2 * held)
        if cap is not None:
            size = min(size, cap)
        if (objects, size) != (held_objects, held):
            self._resize(objects, size)

    def write(self, index: int, slot: int, key: Tensor, value: Tensor, *, again: bool = False) -> None:
        earlier = self.slot(index, slot) if again else None
        for name, rows in self._format.encode(key, value, earlier).items():
            self._tensors[name][index, slot] = rows

    def rows(self, index: int, slot: int) -> tuple[Tensor, Tensor]:
        return decoded_slot(self._format, self._layout, self.slot(index, slot))

    def slot(self, index: int, slot: int) -> Fields:
        return {name: tensor[index, slot] for name, tensor in self._tensors.items()}

    def parts(self, counts: list[int]) -> Iterator[Part | QuantizedPart]:
        longest, step = max(counts), self._slots_a_part(len(counts))
        for first in range(0, longest, step):
            fields = {name: tensor[:, first : min(first + step, longest)] for name, tensor in self._tensors.items()}
            here = [min(max(count - first, 0), step) for count in counts]
            yield part_of(self._format, self._layout.dtype, fields, here)

    def keep(self, indices: list[int]) -> None:
        self._tensors = {name: tensor[indices] for name, tensor in self._tensors.items()}

    def state_dict(self, counts: list[int]) -> dict[str, Tensor]:
        # views, object by object: the used slots of all objects together would be a copy
        used = {
            f"{name}.{index}": tensor[index, :count]
            for name, tensor in self._tensors.items()
            for index, count in enumerate(counts)
        }
        return {"held": torch.tensor(self._tensors["key"].shape[:2])} | used

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        objects, slots = state["held"].tolist()
        self._resize(objects, slots)
        for name, tensor in self._tensors.items():
            for index in range(objects):
                rows = state[f"{name}.{index}"]
                check_rows(name, rows, tensor[index, : len(rows)])
                tensor[index, : len(rows)] = rows.to(tensor.device)

    def close(self) -> None:
        self._resize(0, 0)

    def _slots_a_part(self, objects: int) -> int:
        if self._format.keeps(self._layout.dtype):
            return max(1, self._tensors["key"].shape[1])
        return max(1, SCRATCH_BYTES // (objects * self._layout.slot_bytes))

    def _resize(self, objects: int, slots: int) -> None:
        for name, field in self._fields.items():
            new = _zero_slots(field, objects, slots, self._layout.device)
            old = self._tensors[name][:objects, :slots]
            new[: old.shape[0], : old.shape[1]] = old
            # one field at a time, so that the old and the new bank never exist completely at once
            self._tensors[name] = new


def check_rows(name: str, found: Tensor, into: Tensor) -> None:
    """Raises ValueError if loaded rows differ from their destination in shape or dtype."""
    if found.shape != into.shape or found.dtype != into.dtype:
        what, expected = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (found, into))
        raise ValueError(f"load_state_dict: {name}: found {what}, expected {expected}")


def _zero_slots(field: Field, objects: int, slots: int, device: torch.device) -> Tensor:
    """[O, slots, rows, W]. Zeros, not empty: in code without masks a NaN in a spare row reaches the sums as 0 * NaN."""
    return torch.zeros(objects, slots, field.rows, field.width, dtype=field.dtype, device=device)
