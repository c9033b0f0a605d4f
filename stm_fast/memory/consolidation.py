"""Consolidation: the most used rows of frames become prototypes (XMem, Cheng and Schwing, ECCV 2022, section 3.3).

Prototypes fill whole slots of an object, so every format and place stores them as it stores frames. Every frame that
was consolidated has the same share of them.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stm_fast.config import Evict
from stm_fast.memory.policy import Slot, victims
from stm_fast.memory.sharded import Shard
from stm_fast.memory.storage import FrameLayout, Storage
from stm_fast.memory.usage import RowUsage, part_usage
from stm_fast.ops import memory_read
from stm_fast.ops.inputs import accumulation_dtype


def prototypes_of(
    key: Tensor, value: Tensor, usage: Tensor, count: int, query_of: Callable[[Tensor], Tensor], backend: str
) -> tuple[Tensor, Tensor]:
    """The keys and values of prototypes (XMem equation 5, with this model's similarity).

    The keys are those of the `count` most used rows, in the order of the rows. The value of each is read from all rows
    by its own query ("potentiation"), so it also represents rows that are not kept.

    Args:
        key: ``[N, Ck]``, candidates.
        value: ``[N, Cv]``.
        usage: ``[N]``; of equal ones the first rows are taken.
        count: at most N.
        query_of: converts keys to the queries that the model would have at these pixels.
        backend: as in :func:`stm_fast.ops.memory_read`.

    Returns:
        ``[count, Ck]`` and ``[count, Cv]``.
    """
    chosen = usage.argsort(descending=True, stable=True)[:count].sort().values
    prototype_key = key[chosen]
    out = memory_read(query_of(prototype_key)[None], key[None], value[None], backend=backend)
    return prototype_key, out[0]


class Consolidation:
    """Consolidates the frames of a bank's objects, and keeps the usage of its rows.

    Args:
        most: how many slots of an object may hold prototypes.
        evict: which frames are consolidated first.
        shard: of the bank; all ranks consolidate the same rows, and each writes its own slots.
        query_of, backend: as in `prototypes_of`; None: keys are their own queries.
    """

    def __init__(
        self, most: int, evict: Evict, shard: Shard, query_of: Callable[[Tensor], Tensor] | None, backend: str
    ) -> None:
        self._most, self._evict, self._shard = most, evict, shard
        self._query_of = query_of or (lambda key: key)
        self._backend = backend
        self.usage = RowUsage()

    @torch.no_grad()
    def measure(self, layout: FrameLayout, storage: Storage, counts: list[int], query: Tensor, lse: Tensor) -> None:
        """Adds the softmax weights of a read to the usage of the rows.

        Args:
            layout, storage: of the bank.
            counts: how many slots of each object were read, on all ranks.
            query: ``[1 or O, M, Ck]``.
            lse: ``[O, M]``.
        """
        here = [self._shard.count(count) for count in counts]
        parts = storage.parts(here) if max(here, default=0) else ()
        nothing = lse.new_zeros(len(counts), 0, layout.rows, dtype=torch.float32)
        found = [part_usage(query, lse, part, layout.rows, self._backend) for part in parts]
        self.usage.add(self._shard.join_usage(torch.cat([nothing, *found], dim=1), max(counts, default=0)))

    @torch.no_grad()
    def consolidate(
        self, layout: FrameLayout, storage: Storage, index: int, slots: list[Slot], newcomer: int, cap: int
    ) -> int | None:
        """Makes prototypes of an object's frames; returns the slot that is then free, None if there are too few frames.

        Args:
            layout, storage: of the bank.
            index: of the object.
            slots: of the object; those that will hold prototypes are replaced.
            newcomer: the frame that needs room.
            cap: how many slots the object may have.
        """
        # given masks come first, and two slots remain for frames, so that each is read before it is consolidated
        most = max(0, min(self._most, cap - sum(slot.permanent for slot in slots) - 2))
        held = [number for number, slot in enumerate(slots) if slot.prototypes]
        if len(held) > most:
            return min(held, key=lambda slot: float(self.usage.mean(index, [slot]).sum()))
        frames = victims(self._evict, slots, newcomer, most - len(held) + 1)
        if not frames or len(held) + len(frames) == 1:
            return None
        *added, freed = frames
        key, value = self._rows(layout, storage, index, frames)
        total = len(frames) + (slots[held[0]].prototypes if held else 0)
        rows = layout.rows * len(added) or max(1, layout.rows * len(held) // total)
        usage = self.usage.mean(index, frames)
        new = prototypes_of(key, value, usage, rows, self._query_of, self._backend)
        if added:
            self._write(storage, index, added, *new)
            self.usage.reset(index, added)
        else:
            self._replace(layout, storage, index, held, *new)
        for slot in [*held, *added]:
            slots[slot] = replace(slots[slot], prototypes=total)
        return freed

    def _replace(
        self, layout: FrameLayout, storage: Storage, index: int, held: list[int], new_key: Tensor, new_value: Tensor
    ) -> None:
        """Overwrites the least used prototypes, of those equally used the first ones."""
        key, value = self._rows(layout, storage, index, held)
        replaced = self.usage.mean(index, held).argsort(stable=True)[: len(new_key)].sort().values
        key[replaced], value[replaced] = new_key, new_value
        self._write(storage, index, held, key, value, again=True)
        self.usage.reset(index, held, replaced)

    def _rows(self, layout: FrameLayout, storage: Storage, index: int, slots: list[int]) -> tuple[Tensor, Tensor]:
        """Key [N, Ck] and value [N, Cv] of slots of an object, on every rank."""
        dtype = accumulation_dtype(layout.dtype)
        key, value = (
            torch.empty(len(slots), layout.rows, width, dtype=dtype, device=layout.device)
            for width in (layout.key_dim, layout.value_dim)
        )
        for number, slot in enumerate(slots):
            if self._shard.holds(slot):
                key[number], value[number] = storage.rows(index, self._shard.local(slot))
            for rows in (key[number], value[number]):
                self._shard.broadcast(slot, rows)
        return key.flatten(0, 1), value.flatten(0, 1)

    def _write(
        self, storage: Storage, index: int, slots: list[int], key: Tensor, value: Tensor, *, again: bool = False
    ) -> None:
        """Writes rows, [N, Ck] and [N, Cv], to slots of an object that this rank holds."""
        parts = zip(slots, key.chunk(len(slots)), value.chunk(len(slots)), strict=True)
        for slot, key_part, value_part in parts:
            if self._shard.holds(slot):
                storage.write(index, self._shard.local(slot), key_part, value_part, again=again)
