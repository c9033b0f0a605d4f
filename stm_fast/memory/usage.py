"""The usage of every memory row (XMem, Cheng and Schwing, ECCV 2022, section 3.3).

O objects, M queries, R rows of a slot, Ck key width. The usage of a row is its softmax weight summed over the queries,
averaged over the measured reads since the row was written.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stm_fast.memory.storage import SCRATCH_BYTES, Part, QuantizedPart
from stm_fast.ops import memory_read
from stm_fast.ops.inputs import in_channels

# per row
USAGE_BYTES = 8


class RowUsage:
    """The usage of the rows of every slot of every object, on all ranks: float32, two numbers per row."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, 0, 0, 0)  # [weights and reads, O, slots, R]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._sums.nbytes

    def reserve(self, objects: int, slots: int, rows: int, device: torch.device) -> None:
        """Makes room for this many objects and slots; what was measured is kept."""
        held = self._sums
        if held.shape[1] < objects or held.shape[2] < slots:
            size = max(slots, 2 * held.shape[2]) if slots > held.shape[2] else held.shape[2]
            self._sums = torch.zeros(2, objects, size, rows, device=device)
            if held.numel():
                self._sums[:, : held.shape[1], : held.shape[2]] = held

    def add(self, usage: Tensor) -> None:
        """Adds the usage of one read, [O, slots, R], of the first slots of every object."""
        weights, reads = self._sums[:, :, : usage.shape[1]]
        weights += usage
        reads += 1

    def mean(self, index: int, slots: list[int]) -> Tensor:
        """The usage of the rows of some slots of an object, [len(slots), R]; infinite for rows never read."""
        weights, reads = self._sums[:, index, slots]
        return torch.where(reads == 0, torch.inf, weights / reads)

    def reset(self, index: int, slot: int) -> None:
        """Forgets the usage of a slot of an object."""
        self._sums[:, index, slot] = 0

    def clear(self) -> None:
        """Forgets everything."""
        self._sums = torch.zeros(2, 0, 0, 0)

    def move(self, index: int, source: int, target: int, rows: Tensor | None = None) -> None:
        """Rows of a slot of an object, int64 [n], or all, were copied to another one."""
        moved = slice(None) if rows is None else rows
        self._sums[:, index, target, moved] = self._sums[:, index, source, moved]

    def keep(self, indices: list[int]) -> None:
        """Forgets all objects but these."""
        self._sums = self._sums[:, indices]

    def state_dict(self, counts: list[int]) -> dict[str, Tensor]:
        """What was measured of the first `counts[index]` slots of every object."""
        return {str(index): self._sums[:, index, :count] for index, count in enumerate(counts)}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores the output of `state_dict`."""
        slots, rows = (max((sums.shape[dim] for sums in state.values()), default=0) for dim in (1, 2))
        self._sums = torch.zeros(2, len(state), slots, rows, device=device)
        for index, sums in state.items():
            self._sums[:, int(index), : sums.shape[1]] = sums.to(device)


def part_usage(query: Tensor, lse: Tensor, part: Part | QuantizedPart, rows: int, backend: str) -> Tensor:
    """The softmax weights of the rows of a part, summed over the queries: float32 [O, slots, R].

    ``sum_i exp(S_ij - lse_i)`` is the normalizer of a read with exchanged roles, in which the queries are the memory;
    -lse_i is added to their scores by further channels. So it takes no affinity either, and no values.

    Args:
        query: ``[1 or O, M, Ck]``.
        lse: ``[O, M]``, of the whole memory.
        part: some of its slots, `rows` rows each; those beyond its counts may hold anything.
        backend: as in :func:`stm_fast.memory_read`.
    """
    scale = 1 / math.sqrt(query.shape[2])
    bias = in_channels(-lse.to(torch.promote_types(query.dtype, torch.float32)) / scale, query.dtype)  # [O, M, 1 or 3]
    swapped_key = torch.cat([query.expand(len(lse), -1, -1), bias], dim=2)
    no_value = query.new_empty(*swapped_key.shape[:2], 0)
    found = []
    for key in _keys(part, rows, query.dtype):
        swapped_query = torch.cat([key, key.new_ones(1, 1, 1).expand(*key.shape[:2], bias.shape[2])], dim=2)
        _, weight = memory_read(swapped_query, swapped_key, no_value, scale=scale, return_lse=True, backend=backend)
        found.append(weight.float().exp_().view(len(lse), -1, rows))
    return torch.cat(found, dim=1)


def _keys(part: Part | QuantizedPart, rows: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The keys of a part, [O, slots * R, Ck], some slots at a time, because each time they are copied."""
    stored = part.memory.key.flatten(1, 2) if isinstance(part, QuantizedPart) else part.key
    step = max(1, SCRATCH_BYTES // (len(stored) * rows * stored.shape[2] * dtype.itemsize))
    for first in range(0, stored.shape[1] // rows, step):
        if isinstance(part, QuantizedPart):
            yield part.memory.slots(first, first + step).dequantized_key(dtype)
        else:
            yield stored[:, first * rows : (first + step) * rows]
