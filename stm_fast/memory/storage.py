"""Where memory rows lie: the contract, and rows on the device of the model, in one tensor a field.

O objects; a slot is one frame of one object, R = h*w rows.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stm_fast.memory.formats import Field, Fields, Format
from stm_fast.ops.quantised import QuantisedMemory

# rows that are not kept as they are read are decoded in parts of about this many bytes
SCRATCH_BYTES = 2**25


class FrameLayout(NamedTuple):
    """What all frames of a bank have in common."""

    rows: int  # R = h*w
    key_dim: int
    value_dim: int
    dtype: torch.dtype  # of the model
    device: torch.device

    @property
    def slot_bytes(self) -> int:
        """Of a slot in the model's dtype."""
        return self.rows * (self.key_dim + self.value_dim) * self.dtype.itemsize


class Part(NamedTuple):
    """Some neighbouring slots of every object, ready to be read."""

    first_slot: int
    key: Tensor  # [O, slots*R, Ck]
    value: Tensor  # [O, slots*R, Cv]
    counts: list[int]  # slots that count, of each object

    def slots(self, rows: int) -> Iterator["Part"]:
        """The same, one slot at a time."""
        for slot in range(self.key.shape[1] // rows):
            place = slice(slot * rows, (slot + 1) * rows)
            counts = [int(slot < count) for count in self.counts]
            yield Part(self.first_slot + slot, self.key[:, place], self.value[:, place], counts)


class QuantisedPart(NamedTuple):
    """The same as it is kept, one byte a number."""

    first_slot: int
    memory: QuantisedMemory
    counts: list[int]

    def slots(self, rows: int) -> Iterator["QuantisedPart"]:
        """The same, one slot at a time."""
        for slot in range(self.memory.key.shape[1]):
            counts = [int(slot < count) for count in self.counts]
            yield QuantisedPart(self.first_slot + slot, self.memory.slots(slot, slot + 1), counts)


def part_of(
    row_format: Format, dtype: torch.dtype, first_slot: int, fields: Fields, counts: list[int]
) -> Part | QuantisedPart:
    """A part from its fields [O, slots, rows, W]: as it is kept where it is read so, else decoded to `dtype`."""
    memory = row_format.as_kept(fields)
    if memory is not None:
        return QuantisedPart(first_slot, memory, counts)
    return Part(first_slot, *row_format.decode(fields, dtype), counts)


class Storage(Protocol):
    """Slots 0, 1, ... of every object. A slot is written whole."""

    @property
    def nbytes(self) -> int:
        """What the slots take, spare ones included."""
        ...

    def slots_within(self, nbytes: int, objects: int) -> int:
        """How many slots of each of so many objects fit into so many bytes."""
        ...

    def reserve(self, objects: int, slots: int, most: int | None) -> None:
        """Makes room for so many objects and slots of each, never for more than `most` slots."""
        ...

    def write(self, index: int, slot: int, key: Tensor, value: Tensor) -> None:
        """Puts a frame, key [R, Ck] and value [R, Cv], into a slot of one object."""
        ...

    def slot(self, index: int, slot: int) -> Fields:
        """Views [rows, W] of the fields of a slot that was written; what is written to them is in the slot."""
        ...

    def parts(self, counts: list[int]) -> Iterator[Part | QuantisedPart]:
        """The first `counts[index]` slots of every object, ready to be read. A part lives until the next one."""
        ...

    def keep(self, indices: list[int]) -> None:
        """Forgets all objects but these."""
        ...

    def state_dict(self, counts: list[int]) -> dict[str, Tensor]:
        """The first `counts[index]` slots of every object, as they are kept."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` of such a storage gave."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...


class DeviceStorage:
    """Rows on the model's device, in one tensor [O, slots, rows, W] a field.

    It has its known size at once, or that of its cap, or grows by doubling. Spare rows are zero.

    Args:
        known_slots: how many slots each object will have, where that is known.
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

    def reserve(self, objects: int, slots: int, most: int | None) -> None:
        held_objects, held = self._tensors["key"].shape[:2]
        size = held
        if slots > held:
            size = max(slots, self._known_slots or most or 0, 2 * held)
        if most is not None:
            size = min(size, most)
        if (objects, size) != (held_objects, held):
            self._resize(objects, size)

    def write(self, index: int, slot: int, key: Tensor, value: Tensor) -> None:
        for name, rows in self._format.encode(key, value).items():
            self._tensors[name][index, slot] = rows

    def slot(self, index: int, slot: int) -> Fields:
        return {name: tensor[index, slot] for name, tensor in self._tensors.items()}

    def parts(self, counts: list[int]) -> Iterator[Part | QuantisedPart]:
        longest, step = max(counts), self._slots_a_part(len(counts))
        for first in range(0, longest, step):
            fields = {name: tensor[:, first : min(first + step, longest)] for name, tensor in self._tensors.items()}
            here = [min(max(count - first, 0), step) for count in counts]
            yield part_of(self._format, self._layout.dtype, first, fields, here)

    def keep(self, indices: list[int]) -> None:
        self._tensors = {name: tensor[indices] for name, tensor in self._tensors.items()}

    def state_dict(self, counts: list[int]) -> dict[str, Tensor]:
        # views, object by object: the used slots of all together would be a copy
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
            # one field after the other: the old and the new bank are never there both whole
            self._tensors[name] = new


def check_rows(name: str, found: Tensor, into: Tensor) -> None:
    """Raises ValueError where what is loaded has another shape or dtype than what it goes into."""
    if found.shape != into.shape or found.dtype != into.dtype:
        what, expected = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (found, into))
        raise ValueError(f"load_state_dict: {name}: found {what}, expected {expected}")


def _zero_slots(field: Field, objects: int, slots: int, device: torch.device) -> Tensor:
    """[O, slots, rows, W]; zeros, not empty: a NaN in a spare row reaches the sums as 0 * NaN in code without masks."""
    return torch.zeros(objects, slots, field.rows, field.width, dtype=field.dtype, device=device)
