"""Consolidation: the most used rows of frames become prototypes (XMem, Cheng and Schwing, ECCV 2022, section 3.3).

Prototypes fill whole slots of an object, so every format and place stores them as it stores frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.config import Evict
from stm_fast.memory.policy import Slot, victim
from stm_fast.memory.sharded import Shard
from stm_fast.memory.storage import FrameLayout, Storage
from stm_fast.memory.usage import RowUsage
from stm_fast.ops import memory_read
from stm_fast.ops.inputs import accumulation_dtype

# of the prototypes, how many are replaced when more frames are consolidated
REPLACED_SHARE = 0.25
# of the frames that could be consolidated, how many are
CONSOLIDATED_SHARE = 0.5


class Plan(NamedTuple):
    """What is consolidated, as indices of an object's slots."""

    frames: list[int]  # whose rows are the candidates
    held: list[int]  # slots that hold prototypes
    added: int  # how many more slots will; if none, the least used prototypes are replaced


def plan_of(slots: Sequence[Slot], evict: Evict, newcomer: int, most: int) -> Plan | None:
    """What is consolidated to make room for frame `newcomer`; None if there are too few frames.

    The frames are those that `evict` would evict one after another, except for the newest, which resembles the next
    ones most.

    Args:
        slots: of an object.
        most: how many of them may hold prototypes.
    """
    held = [index for index, slot in enumerate(slots) if slot.prototypes]
    frames = [index for index in range(len(slots)) if index not in held]
    newest = max(frames, key=lambda index: slots[index].frame, default=-1)
    evictable = sum(not slots[index].permanent and index != newest for index in frames)
    added = max(0, min(most - len(held), evictable - 1))
    if evictable == 0 or len(held) + added == 0:
        return None
    chosen: list[int] = []
    while len(chosen) < max(added + 1, round(CONSOLIDATED_SHARE * evictable)):
        found = victim(evict, slots, newcomer, evicted=chosen, spared=[newest])
        assert found is not None
        chosen.append(found)
    return Plan(sorted(chosen), held, added)


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

    def consolidate(
        self, layout: FrameLayout, storage: Storage, index: int, slots: list[Slot], newcomer: int, cap: int
    ) -> list[int]:
        """Makes prototypes of an object's frames; returns the slots that are then free, none if there are too few.

        Args:
            layout, storage: of the bank.
            index: of the object.
            slots: of the object; those that will hold prototypes are replaced.
            newcomer: the frame that needs room.
            cap: how many slots the object may have.
        """
        # given masks come first; and without two slots for frames, one would be consolidated before it is read
        most = max(0, min(self._most, cap - sum(slot.permanent for slot in slots) - 2))
        held = [number for number, slot in enumerate(slots) if slot.prototypes]
        if len(held) > most:
            return [min(held, key=lambda slot: float(self.usage.mean(index, [slot]).sum()))]
        plan = plan_of(slots, self._evict, newcomer, most)
        if plan is None:
            return []
        key, value = self._rows(layout, storage, index, plan.frames)
        usage = self.usage.mean(index, plan.frames)
        count = plan.added * layout.rows or max(1, round(REPLACED_SHARE * len(held) * layout.rows))
        if not plan.added and REPLACED_SHARE == 0:
            have = self.usage.mean(index, held).sort().values[: len(usage)]
            count = int((usage.sort(descending=True).values[: len(have)] > have).sum())
            if count == 0:
                return plan.frames
        count = min(count, len(usage))
        new = prototypes_of(key, value, usage, count, self._query_of, self._backend)
        added, freed = plan.frames[: plan.added], plan.frames[plan.added :]
        if added:
            self._write(storage, index, added, *new)
        else:
            self._replace(layout, storage, index, held, *new)
        for slot in added:
            slots[slot] = replace(slots[slot], permanent=False, prototypes=True)
            self.usage.reset(index, slot)
        return freed

    def _replace(
        self,
        layout: FrameLayout,
        storage: Storage,
        index: int,
        held: list[int],
        new_key: Tensor,
        new_value: Tensor,
    ) -> None:
        """Overwrites the least used prototypes, of those equally used the first ones."""
        key, value = self._rows(layout, storage, index, held)
        replaced = self.usage.mean(index, held).argsort(stable=True)[: len(new_key)].sort().values
        key[replaced], value[replaced] = new_key, new_value
        self._write(storage, index, held, key, value, again=True)
        for number, slot in enumerate(held):
            here = replaced[replaced // layout.rows == number] % layout.rows
            self.usage.reset(index, slot, here)

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
