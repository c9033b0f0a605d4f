"""Consolidation: the most used rows of frames become prototypes (XMem, Cheng and Schwing, ECCV 2022, section 3.3).

Prototypes fill whole slots of an object, one row for each pixel, so every format and place stores them as it stores
frames. XMem selects the most used rows of whole frames, and reads their new values from all rows. Here both is done
pixel by pixel, which gave better masks in the few long clips on which the two were compared.

K slots of prototypes, R pixels, Ck and Cv the widths of keys and values.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stm_fast.config import Evict
from stm_fast.memory.policy import Slot, victims
from stm_fast.memory.read_parts import ReadResult, empty_read
from stm_fast.memory.sharded import Shard
from stm_fast.memory.storage import FrameLayout, Storage
from stm_fast.memory.usage import RowUsage, part_usage
from stm_fast.ops import memory_read
from stm_fast.ops.inputs import accumulation_dtype

# Of the prototypes that a frame would replace if every consolidated frame had the same share, how many it does. Chosen
# on two clips of 1,000 frames, in which 0.5 was better than 1; early frames then keep more prototypes than late ones.
SHARE = 0.5


class Consolidation:
    """Consolidates the frames of a bank's objects, and keeps the usage of its rows.

    Args:
        most: how many slots of an object may hold prototypes, K.
        evict: which frames are consolidated first.
        shard: of the bank.
        query_of: converts memory keys ``[N, Ck]`` to the query keys of the same pixels; None: they are equal.
        backend: as in :func:`stm_fast.ops.memory_read`.

    Attributes:
        usage: of the rows; the same on all ranks.
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
        """Makes room for a frame of an object: the slot that is then free, None if there are too few frames.

        The frame that would be evicted is consolidated: some of its rows replace the least used prototypes of their
        pixels. The first prototypes are the rows of frames that would be evicted.

        Args:
            layout, storage: of the bank.
            index: of the object.
            slots: of the object; those that hold prototypes afterwards are replaced.
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
        prototypes = [*held, *added]
        consolidated = len(frames) + (slots[held[0]].prototypes if held else 0)
        count = max(1, int(SHARE * layout.rows * len(prototypes) / consolidated))
        pixels, replaced = self._chosen(index, prototypes, freed, count)
        self._replace(layout, storage, index, prototypes, freed, pixels, replaced)
        for slot in prototypes:
            slots[slot] = replace(slots[slot], prototypes=consolidated)
        return freed

    def _chosen(self, index: int, prototypes: list[int], freed: int, count: int) -> tuple[Tensor, Tensor]:
        """The pixels where a frame gains most by replacing a prototype, and the slot of each one that is replaced.

        Returns:
            int64 ``[min(count, R)]`` each; pixels ascend, and slots are counted in the list.
        """
        usage = self.usage.mean(index, [*prototypes, freed])  # [K + 1, R]
        least = usage[:-1].min(dim=0)
        gain = (usage[-1] / least.values).nan_to_num(nan=0.0)  # rows never read have infinite usage
        pixels = gain.argsort(descending=True, stable=True)[:count].sort().values
        return pixels, least.indices[pixels]

    def _replace(
        self,
        layout: FrameLayout,
        storage: Storage,
        index: int,
        prototypes: list[int],
        freed: int,
        pixels: Tensor,
        replaced: Tensor,
    ) -> None:
        """Replaces prototypes by rows of the slot `freed`, with new values.

        A new value is read from all prototypes of the pixel and the row itself, by the row's own query (XMem equation
        5, "potentiation"), so it also represents the row that is replaced. Each rank reads and writes its own slots.
        """
        held = [slot for slot in (*prototypes, freed) if self._shard.holds(slot)]
        rows = {slot: storage.rows(index, self._shard.local(slot)) for slot in held}
        dtype = accumulation_dtype(layout.dtype)
        blank = torch.empty(layout.rows, layout.key_dim, dtype=dtype, device=layout.device)
        frame_key = rows[freed][0] if freed in rows else blank
        self._shard.broadcast(freed, frame_key)
        new_key = frame_key[pixels]  # [n, Ck]
        query = self._query_of(new_key)[:, None]
        mine = empty_read(query, len(query), layout.value_dim)
        if held:
            key, value = (torch.stack([rows[slot][which][pixels] for slot in held], dim=1) for which in (0, 1))
            mine = ReadResult(*memory_read(query, key, value, return_lse=True, backend=self._backend))
        new_value = self._shard.join(mine).out[:, 0]  # [n, Cv]
        for number, slot in enumerate(prototypes):
            here = replaced == number
            self.usage.move(index, freed, slot, pixels[here])
            if slot in rows:
                key, value = rows[slot]
                key[pixels[here]], value[pixels[here]] = new_key[here], new_value[here]
                storage.write(index, self._shard.local(slot), key, value, again=True)
