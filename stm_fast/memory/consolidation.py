"""Consolidation: the most used rows of frames become prototypes (XMem, Cheng and Schwing, ECCV 2022, section 3.3).

Prototypes fill whole slots of an object, one row for each pixel, so every format and place stores them as it stores
frames. XMem selects the most used rows of whole frames, and reads their new values from all rows that it consolidates.
Here rows are selected pixel by pixel, which gave better masks in the one long clip on which the two were compared, and
new values are read from the rows of the same pixel and from the frames with given masks. `benchmarks/README.md`
compares the masks with those of a memory of whole frames.

K slots of prototypes, R pixels, Ck and Cv the widths of keys and values.
"""

from collections.abc import Callable, Iterable, Iterator
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

_Rows = tuple[Tensor, Tensor]  # key [R, Ck] and value [R, Cv] of a slot


class Consolidation:
    """Consolidates the frames of a bank's objects, and keeps the usage of its rows.

    Args:
        most: how many slots of an object may hold prototypes, K.
        evict: which frames are consolidated first.
        shard: of the bank.
        query_of: converts memory keys ``[N, Ck]`` to the query keys of the same pixels; None: they are equal.
        backend: as in :func:`stm_fast.memory_read`.

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
        """Adds the softmax weights of a read to the usage of the rows, of all slots that it saw.

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
        given = [number for number, slot in enumerate(slots) if slot.permanent]
        rows = dict(self._rows(storage, index, [*prototypes, freed]))
        new_key, new_value = self._potentiated(layout, rows, freed, pixels, self._rows(storage, index, given))
        for number, slot in enumerate(prototypes):
            here = replaced == number
            self.usage.move(index, freed, slot, pixels[here])
            if slot in rows:
                key, value = rows[slot]
                key[pixels[here]], value[pixels[here]] = new_key[here], new_value[here]
                storage.write(index, self._shard.local(slot), key, value, again=True)
            slots[slot] = replace(slots[slot], prototypes=consolidated)
        return freed

    def _rows(self, storage: Storage, index: int, slots: list[int]) -> Iterator[tuple[int, _Rows]]:
        """The slots that are on this rank, each with its rows."""
        for slot in slots:
            if self._shard.holds(slot):
                yield slot, storage.rows(index, self._shard.local(slot))

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

    def _potentiated(
        self,
        layout: FrameLayout,
        rows: dict[int, _Rows],
        freed: int,
        pixels: Tensor,
        given: Iterable[tuple[int, _Rows]],
    ) -> tuple[Tensor, Tensor]:
        """Rows of the slot `freed` as prototypes: key ``[n, Ck]`` and value ``[n, Cv]``, the same on all ranks.

        The key is the row's own. The value is read by its query (XMem equation 5, "potentiation") from the row, from
        all prototypes of its pixel, so it also represents the one that is replaced, and from the frames with given
        masks, which have no errors of the network to hand on.

        Args:
            layout: of the bank.
            rows: of the prototypes and of `freed`, as far as they are on this rank.
            freed: the slot of the frame.
            pixels: int64 ``[n]``.
            given: the slots with given masks on this rank.
        """
        dtype = accumulation_dtype(layout.dtype)
        blank = torch.empty(layout.rows, layout.key_dim, dtype=dtype, device=layout.device)
        frame_key = rows[freed][0] if freed in rows else blank
        self._shard.broadcast(freed, frame_key)
        new_key = frame_key[pixels]
        query = self._query_of(new_key)[None]  # [1, n, Ck]
        mine = empty_read(query, 1, layout.value_dim)
        if rows:
            key, value = (torch.stack([slot[which][pixels] for slot in rows.values()], dim=1) for which in (0, 1))
            out, lse = self._read(query.transpose(0, 1), key, value)
            mine = ReadResult(out.transpose(0, 1), lse.mT)
        for _, (key, value) in given:
            mine = mine.merged(self._read(query, key[None], value[None]))
        return new_key, self._shard.join(mine).out[0]

    def _read(self, query: Tensor, key: Tensor, value: Tensor) -> ReadResult:
        return ReadResult(*memory_read(query, key, value, return_lse=True, backend=self._backend))
