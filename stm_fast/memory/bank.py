"""The memory bank: the keys and values of memorized frames.

O objects, Ck key width, Cv value width, h and w the frame size at stride 16; a slot is one frame of one object, and its
memory rows are the frame's h*w pixels.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from stm_fast.arguments import flag, integer
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError, option
from stm_fast.memory.consolidation import Consolidation
from stm_fast.memory.places import row_format_of, storage_of
from stm_fast.memory.policy import Slot, victim
from stm_fast.memory.read_parts import ReadResult, empty_read, read_part, usage_of
from stm_fast.memory.repeated import RepeatedReads
from stm_fast.memory.sharded import Shard
from stm_fast.memory.storage import FrameLayout, Part, QuantizedPart, Storage
from stm_fast.ops.arguments import check_tensors

# prefixes in the state
_STORAGE, _ROW_USAGE = "storage.", "row_usage."


class MemoryBank:
    """Slots of memory rows; each object uses the first ones.

    The order of memory rows does not matter to a read, so an evicted frame is overwritten by the new one and rows are
    never moved (except when new objects reduce the frames per object under a cap in bytes). A temporary frame occupies
    the slot after the others, and the next frame replaces it.

    Args:
        config: what is kept, in which format, and where; by default everything, on the device of the appended tensors.
        frames: how many frames the bank will hold, the temporary one included, if known.
        backend: as in :func:`stm_fast.memory_read`.
        shard: this process's shard of the slots, if several processes share a bank.
        query_of: converts memory keys ``[N, Ck]`` to the query keys of the same pixels, if the model's differ.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        frames: int | None = None,
        backend: str = "auto",
        shard: Shard | None = None,
        query_of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._config = config or MemoryConfig()
        self._known_slots = frames
        self._backend = backend
        self._shard = shard or Shard()
        self._measures_usage = self._config.capped and self._config.evict == "least_used"
        self._layout: FrameLayout | None = None
        self._storage: Storage | None = None
        self._consolidation: Consolidation | None = None
        if self._config.consolidate is not None:
            self._consolidation = Consolidation(
                self._config.consolidate, self._config.evict, self._shard, query_of, backend
            )
        self._slots: list[list[Slot]] = []  # of each object, without the temporary frame
        self._temporary: list[bool] = []  # whether a temporary frame follows them, by object
        self._appended = 0
        self._repeated = RepeatedReads()

    @property
    def objects(self) -> int:
        """The number of objects in the bank."""
        return len(self._slots)

    @property
    def frames(self) -> list[list[int]]:
        """The frame numbers of each object's slots, without the temporary one, and without prototypes."""
        return [[slot.frame for slot in slots if not slot.prototypes] for slots in self._slots]

    @property
    def rows(self) -> list[int]:
        """The number of rows that a read of each object sees, on all ranks."""
        rows = 0 if self._layout is None else self._layout.rows
        return [count * rows for count in self._counts]

    @property
    def nbytes(self) -> int:
        """Size of this process's rows in bytes, spare ones included, wherever they are."""
        return 0 if self._storage is None else self._storage.nbytes

    def append(
        self,
        key: Tensor,
        value: Tensor,
        *,
        temporary: bool = False,
        permanent: Collection[int] = (),
        absent: Collection[int] = (),
        frame: int | None = None,
    ) -> None:
        """Adds a frame for every object; objects beyond the known ones are new.

        If the memory is full, frames are consolidated or another one is evicted; if all are permanent, the new frame is
        temporary.

        Args:
            key: ``[O, Ck, h, w]``.
            value: ``[O, Cv, h, w]``.
            temporary: the frame is kept only until the next one is appended.
            permanent: indices of the objects for which the frame is never evicted.
            absent: indices of the objects that the frame does not show: their memory, including its temporary frame,
                is left unchanged.
            frame: its number in the video; by default the number of frames appended before.

        Raises:
            ValueError: fewer objects than the bank holds; widths, sizes, dtypes or a device that differ from the
                bank's; or an index out of range.
            TypeError: an argument of another type.
            InputError: no room for a permanent frame, or the disk is full.
        """
        temporary = flag(temporary, "MemoryBank.append: temporary")
        frame = None if frame is None else integer(frame, "MemoryBank.append: frame", "an integer or None")
        check_tensors(key=key, value=value)
        if not key.is_floating_point():
            raise TypeError(f"MemoryBank.append: key: found {key.dtype}, expected a float dtype")
        permanent, absent = _indices(permanent, "permanent", len(key)), _indices(absent, "absent", len(key))
        if temporary and not self._config.previous:
            raise ValueError("MemoryBank.append: found a temporary frame, expected none with MemoryConfig.previous off")
        storage = self._storage_for(key, value)
        number = self._appended if frame is None else frame
        self._appended += 1
        cap = self._frame_cap(storage, key.shape[0])
        self._add_objects(storage, key.shape[0], cap, number)
        shown = [index for index in range(self.objects) if index not in absent]
        targets = [self._place(storage, index, Slot(number, index in permanent), temporary, cap) for index in shown]
        here = self._shard.count(max(self._counts, default=0))
        storage.reserve(self.objects, here, None if cap is None else self._shard.max_count(cap + self._config.previous))
        for index, target in zip(shown, targets, strict=True):
            if target is not None and self._shard.holds(target):
                rows = key[index].flatten(1).T, value[index].flatten(1).T  # [R, Ck], [R, Cv]
                storage.write(index, self._shard.local(target), *rows)
        if self._consolidation is not None:
            usage = self._consolidation.usage
            usage.reserve(self.objects, max(self._counts), key[0, 0].numel(), key.device)
            for index, target in zip(shown, targets, strict=True):
                if target is not None:
                    usage.reset(index, target)

    def read(self, query_key: Tensor) -> Tensor:
        """Reads each object's memory for every pixel of the current frame (STM section 3.2).

        Differentiable in `query_key` without a process group; rows are then copied.

        Args:
            query_key: ``[1, Ck, h, w]``, or ``[O, Ck, h, w]`` with one query per object.

        Returns:
            ``[O, Cv, h, w]``, channels last.

        Raises:
            ValueError: nothing was appended yet, or the query has another shape, dtype or device.
            TypeError: the query is not a tensor.
            RankLostError: another rank that shares the bank is gone.
        """
        if self._layout is None or self._storage is None:
            raise ValueError("MemoryBank.read: found an empty bank, expected at least one frame")
        check_tensors(query_key=query_key)
        if query_key.ndim != 4:
            raise ValueError(f"MemoryBank.read: found shape {tuple(query_key.shape)}, expected [1 or O, Ck, h, w]")
        mine, lse_by_slot = self._read_local(query_key.flatten(2).mT, self._layout, self._storage)
        result = self._shard.join(mine)
        if self._measures_usage:
            self._measure_usage(lse_by_slot, result.lse)
        # not where a temporary frame takes a part of the weight: each frame that stays is followed by a read without
        if self._consolidation is not None and not all(self._temporary):
            query = query_key.flatten(2).mT
            self._consolidation.measure(self._layout, self._storage, self._counts, query, result.lse)
        out = result.out.to(query_key.dtype)  # [O, M, Cv]
        return out.mT.view(self.objects, self._layout.value_dim, *query_key.shape[2:])

    def remove(self, indices: list[int]) -> None:
        """Forgets objects; the others move up."""
        kept = [index for index in range(self.objects) if index not in indices]
        self._slots = [self._slots[index] for index in kept]
        self._temporary = [self._temporary[index] for index in kept]
        if self._consolidation is not None:
            self._consolidation.usage.keep(kept)
        if self._storage is not None:
            self._storage.keep(kept)

    def clear(self) -> None:
        """Forgets everything."""
        if self._storage is not None:
            self._storage.close()
        self._layout = self._storage = None
        self._slots, self._temporary, self._appended = [], [], 0
        self._repeated = RepeatedReads()
        if self._consolidation is not None:
            self._consolidation.usage.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The whole bank as tensors. They may share memory with the bank: save them before the next append.

        Rows of a bank on disk are mapped, so saving them one by one takes little memory.
        """
        slots = [slot for slots in self._slots for slot in slots]
        state = {
            "kind": torch.tensor(list(self._kind.encode()), dtype=torch.uint8),
            "appended": torch.tensor(self._appended),
            "counts": torch.tensor([len(slots) for slots in self._slots], dtype=torch.int64),
            "temporary": torch.tensor(self._temporary, dtype=torch.bool),
            "frame": torch.tensor([slot.frame for slot in slots], dtype=torch.int64),
            "permanent": torch.tensor([slot.permanent for slot in slots], dtype=torch.bool),
            "usage": torch.tensor([slot.usage for slot in slots], dtype=torch.float64),
            "reads": torch.tensor([slot.reads for slot in slots], dtype=torch.int64),
        }
        if self._consolidation is not None:
            state["prototypes"] = torch.tensor([slot.prototypes for slot in slots], dtype=torch.int64)
            usage = self._consolidation.usage.state_dict(self._counts)
            state |= {f"{_ROW_USAGE}{name}": tensor for name, tensor in usage.items()}
        if self._layout is not None and self._storage is not None:
            state["sizes"] = torch.tensor(self._layout[:3])
            state["dtype"] = torch.empty(0, dtype=self._layout.dtype)
            state["kept"] = torch.tensor(self._keeps(self._layout))
            counts = [self._shard.count(count) for count in self._counts]
            rows = self._storage.state_dict(counts)
            state |= {f"{_STORAGE}{name}": tensor for name, tensor in rows.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Restores the bank that produced this state, bit for bit.

        Args:
            state: from `state_dict` of a bank with the same configuration and shard.
            device: the model's.

        Raises:
            ValueError: the state is of a bank that stores rows differently, for another backend for example.
        """
        found = bytes(state["kind"].tolist()).decode()
        if found != self._kind:
            raise ValueError(f"MemoryBank.load_state_dict: found a bank of {found}, expected {self._kind}")
        self.clear()
        self._appended = int(state["appended"])
        names = ["frame", "permanent", "usage", "reads"] + ["prototypes"] * (self._consolidation is not None)
        columns = (state[name].tolist() for name in names)
        slots = iter([Slot(*row) for row in zip(*columns, strict=True)])
        self._slots = [[next(slots) for _ in range(count)] for count in state["counts"].tolist()]
        self._temporary = state["temporary"].tolist()
        if self._consolidation is not None:
            self._consolidation.usage.load_state_dict(_part(state, _ROW_USAGE), torch.device(device))
        if "sizes" in state:
            rows, key_dim, value_dim = state["sizes"].tolist()
            layout = FrameLayout(rows, key_dim, value_dim, state["dtype"].dtype, torch.device(device))
            if self._config.storage == "fp8" and bool(state["kept"]) != self._keeps(layout):
                raise ValueError("MemoryBank.load_state_dict: found fp8 rows in the layout of another backend")
            self._layout = layout
            self._storage = self._new_storage(self._layout)
            self._storage.load_state_dict(_part(state, _STORAGE))
            self._storage.reserve(self.objects, 0, None)

    @property
    def _counts(self) -> list[int]:
        """The number of slots of each object that a read sees, on all ranks."""
        return [len(slots) + temporary for slots, temporary in zip(self._slots, self._temporary, strict=True)]

    @property
    def _kind(self) -> str:
        config, shard = self._config, self._shard
        pages = "" if config.place == "device" else f" in pages of {config.page_bytes} bytes"
        prototypes = "" if config.consolidate is None else ", consolidated"
        return f"{config.storage} rows on the {config.place}{pages}{prototypes}, rank {shard.rank} of {shard.world}"

    def _storage_for(self, key: Tensor, value: Tensor) -> Storage:
        """The storage, created for the first frame and checked against every later one."""
        found = f"key {tuple(key.shape)}, value {tuple(value.shape)}"
        if key.ndim != 4 or value.ndim != 4 or key.shape[0] != value.shape[0] or key.shape[2:] != value.shape[2:]:
            raise ValueError(f"MemoryBank.append: found {found}, expected [O, Ck, h, w] and [O, Cv, h, w]")
        if key.shape[0] < self.objects:
            raise ValueError(f"MemoryBank.append: found {found}, expected at least {self.objects} objects")
        rows = key.shape[2] * key.shape[3]
        if self._layout is None or self._storage is None:
            self._layout = FrameLayout(rows, key.shape[1], value.shape[1], key.dtype, key.device)
            self._storage = self._new_storage(self._layout)
        if rows != self._layout.rows:
            raise ValueError(f"MemoryBank.append: found {found}, expected {self._layout.rows} pixels per frame")
        for name, new, width in (("key", key, self._layout.key_dim), ("value", value, self._layout.value_dim)):
            if new.shape[1] != width or new.dtype != self._layout.dtype:
                expected = f"width {width} and {self._layout.dtype}"
                raise ValueError(
                    f"MemoryBank.append: {name}: found {new.shape[1]} and {new.dtype}, expected {expected}"
                )
            if new.device != self._layout.device:
                raise ValueError(f"MemoryBank.append: {name}: found on {new.device}, expected on {self._layout.device}")
        return self._storage

    def _new_storage(self, layout: FrameLayout) -> Storage:
        known = None if self._known_slots is None else self._shard.max_count(self._known_slots)
        return storage_of(self._config, layout, known, self._backend)

    def _keeps(self, layout: FrameLayout) -> bool:
        """Whether reads take rows as they are stored: fp8 rows then have another layout."""
        return row_format_of(self._config, layout, self._backend).keeps(layout.dtype)

    def _frame_cap(self, storage: Storage, objects: int) -> int | None:
        """The cap in frames per object, the temporary one not counted; None without a cap."""
        cap, nbytes = self._config.max_frames, self._config.max_bytes
        if nbytes is None or objects == 0:
            return cap
        within = storage.slots_within(nbytes, objects) * self._shard.world - self._config.previous
        if within < 1:
            raise InputError(f"{option('max_bytes')}: {nbytes} bytes do not hold one frame of {objects} objects")
        return within if cap is None else min(cap, within)

    def _add_objects(self, storage: Storage, objects: int, cap: int | None, number: int) -> None:
        """Registers new objects; under a cap in bytes, evicts frames of the others to make room."""
        self._temporary += [False] * (objects - self.objects)
        self._slots += [[] for _ in range(objects - self.objects)]
        for index, slots in enumerate(self._slots):
            while cap is not None and len(slots) > cap:
                evicted, last = self._make_room(storage, index, number, cap), len(slots) - 1
                self._move(storage, index, last, evicted)
                slots[evicted] = slots[last]
                slots.pop()
                self._temporary[index] = False

    def _move(self, storage: Storage, index: int, source: int, target: int) -> None:
        """Copies a slot of an object to another one, which may be on another rank."""
        assert self._layout is not None
        shard, device = self._shard, self._layout.device
        rows, into = (storage.slot(index, shard.local(slot)) if shard.holds(slot) else {} for slot in (source, target))
        for name in rows | into:
            shard.copy(source, target, rows.get(name), into.get(name), device)
        if self._consolidation is not None:
            self._consolidation.usage.move(index, source, target)

    def _place(self, storage: Storage, index: int, new: Slot, temporary: bool, cap: int | None) -> int | None:
        """Records a frame of an object and returns its slot; None if it is not kept, not even temporarily."""
        slots = self._slots[index]
        full = cap is not None and len(slots) >= cap
        if temporary or (full and not new.permanent and all(slot.permanent for slot in slots)):
            self._temporary[index] = self._config.previous
            return len(slots) if self._config.previous else None
        self._temporary[index] = False
        if cap is None or not full:
            slots.append(new)
            return len(slots) - 1
        target = self._make_room(storage, index, new.frame, cap)
        slots[target] = new
        return target

    def _make_room(self, storage: Storage, index: int, number: int, cap: int) -> int:
        """The slot of an object that is free for frame `number` after consolidation, or else eviction."""
        slots, freed = self._slots[index], None
        if self._consolidation is not None and self._layout is not None:
            freed = self._consolidation.consolidate(self._layout, storage, index, slots, number, cap)
        return self._victim(slots, number) if freed is None else freed

    def _victim(self, slots: list[Slot], number: int) -> int:
        index = victim(self._config.evict, slots, number)
        if index is None:
            raise InputError(
                f"frame {number}: the memory is full of {len(slots)} frames with given masks, which are never evicted; "
                "expected a larger cap, or fewer masks"
            )
        return index

    def _read_local(self, query: Tensor, layout: FrameLayout, storage: Storage) -> tuple[ReadResult, list[Tensor]]:
        """Reads the slots of this process; also returns lse [O, M] of every slot if usage is measured."""
        counts = [self._shard.count(count) for count in self._counts]
        parts = iter(storage.parts(counts) if max(counts, default=0) else ())
        pieces: Iterable[Part | QuantizedPart]
        pieces = chain.from_iterable(part.slots(layout.rows) for part in parts) if self._measures_usage else parts
        result, lse_by_slot = None, []
        # map, unlike a loop over the parts, holds no part while the next one is decoded
        read = self._repeated.read if self._may_replay(query) else read_part
        for found in map(partial(read, query, rows=layout.rows, backend=self._backend), pieces):
            result = found if result is None else result.merged(found)
            if self._measures_usage:
                lse_by_slot.append(found.lse)
        return result or empty_read(query, self.objects, layout.value_dim), lse_by_slot

    def _may_replay(self, query: Tensor) -> bool:
        return self._config.graph and query.is_cuda and not torch.is_grad_enabled()

    def _measure_usage(self, lse_by_slot: list[Tensor], total_lse: Tensor) -> None:
        """Adds the softmax weight of this read to the usage of every slot."""
        mine = total_lse.new_zeros(self.objects, len(lse_by_slot))  # [O, local slots]
        for index, lse in enumerate(lse_by_slot):
            mine[:, index] = usage_of(lse, total_lse)
        usages = self._shard.join_usage(mine, max(self._counts, default=0)).tolist()
        for slots, usage in zip(self._slots, usages, strict=True):
            for slot, used in zip(slots, usage, strict=False):
                slot.usage += used
                slot.reads += 1


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _indices(found: Collection[int], name: str, objects: int) -> set[int]:
    """Indices of objects. Raises TypeError for anything else, ValueError for an index out of range."""
    if not isinstance(found, Iterable):
        raise TypeError(f"MemoryBank.append: {name}: found {type(found).__name__}, expected indices of objects")
    indices = {integer(index, f"MemoryBank.append: {name}", "integers") for index in found}
    if not indices <= set(range(objects)):
        raise ValueError(f"MemoryBank.append: {name}: found {sorted(indices)}, expected some of 0 to {objects - 1}")
    return indices
