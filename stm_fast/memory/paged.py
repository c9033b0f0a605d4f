"""Rows in pages outside the model's device, read page by page: at most two pages per object are on the device.

O objects; a slot is one frame of one object. Every object has its own pages, so adding or removing one copies nothing.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from stm_fast.memory.formats import Field, Fields, Format
from stm_fast.memory.pages import Pages
from stm_fast.memory.storage import FrameLayout, Part, QuantizedPart, check_rows, decoded_slot, part_of
from stm_fast.memory.stream import PageStream

_ALIGNMENT = 64  # of every field in a page, in bytes, for vector loads


class PageLayout:
    """Where each field is in a page: the rows of all slots for one field, then the next field.

    Args:
        page_bytes: approximate size of a page's slots in the model's dtype; a page holds at least one slot.
    """

    def __init__(self, frame: FrameLayout, row_format: Format, page_bytes: int) -> None:
        self.slots = max(1, page_bytes // frame.slot_bytes)
        self._places: dict[str, _Place] = {}
        self.nbytes = 0
        for name, field in row_format.fields(frame.rows, frame.key_dim, frame.value_dim).items():
            self._places[name] = _Place(self.nbytes, self.nbytes + self.slots * field.nbytes, field)
            self.nbytes = self._places[name].end + -self._places[name].end % _ALIGNMENT

    def fields(self, page: Tensor) -> Fields:
        """Views [..., slots, rows, W] of the fields in pages uint8 [..., page_bytes]."""
        return {
            name: page[..., start:end].view(field.dtype).view(*page.shape[:-1], self.slots, field.rows, field.width)
            for name, (start, end, field) in self._places.items()
        }


class _Place(NamedTuple):
    start: int
    end: int
    field: Field


class PagedStorage:
    """Rows in pages; see the module.

    Args:
        frame: the layout common to all frames.
        row_format: how rows are stored.
        layout: of a page.
        pages: where pages come from; closed with the storage.
    """

    def __init__(self, frame: FrameLayout, row_format: Format, layout: PageLayout, pages: Pages) -> None:
        self._frame, self._format, self._layout, self._pages = frame, row_format, layout, pages
        self._stream = PageStream(pages, layout.nbytes, frame.device)
        self._tables: list[list[int]] = []  # the pages of each object, in the order of its slots

    @property
    def nbytes(self) -> int:
        return self._pages.nbytes

    def slots_within(self, nbytes: int, objects: int) -> int:
        return nbytes // (objects * self._layout.nbytes) * self._layout.slots

    def reserve(self, objects: int, slots: int, cap: int | None) -> None:
        # pages are allocated when written; here only those past a smaller cap are freed
        self._tables += [[] for _ in range(objects - len(self._tables))]
        for table in self._tables:
            while cap is not None and len(table) > self._pages_of(cap):
                self._pages.free(table.pop())

    def write(self, index: int, slot: int, key: Tensor, value: Tensor, *, again: bool = False) -> None:
        table = self._tables[index]
        while len(table) < self._pages_of(slot + 1):
            table.append(self._pages.allocate())
        fields = self.slot(index, slot)
        for name, rows in self._format.encode(key, value, fields if again else None).items():
            fields[name].copy_(rows)

    def rows(self, index: int, slot: int) -> tuple[Tensor, Tensor]:
        return decoded_slot(self._format, self._frame, self.slot(index, slot))

    def slot(self, index: int, slot: int) -> Fields:
        page, place = divmod(slot, self._layout.slots)
        fields = self._layout.fields(self._pages.open(self._tables[index][page]))
        return {name: rows[place] for name, rows in fields.items()}

    def parts(self, counts: list[int]) -> Iterator[Part | QuantizedPart]:
        number_of_pages, slots = self._pages_of(max(counts)), self._layout.slots
        steps = [
            [table[page] if page * slots < count else None for table, count in zip(self._tables, counts, strict=True)]
            for page in range(number_of_pages)
        ]
        for page, buffer in enumerate(self._stream.steps(steps)):
            here = [min(max(count - page * slots, 0), slots) for count in counts]
            fields = {name: rows[:, : max(here)] for name, rows in self._layout.fields(buffer).items()}
            yield part_of(self._format, self._frame.dtype, fields, here)

    def keep(self, indices: list[int]) -> None:
        for index, table in enumerate(self._tables):
            if index not in indices:
                for page in table:
                    self._pages.free(page)
        self._tables = [self._tables[index] for index in indices]

    def state_dict(self, counts: list[int]) -> dict[str, Tensor]:
        return {
            f"page.{index}.{number}": self._pages.open(table[number])
            for index, (table, count) in enumerate(zip(self._tables, counts, strict=True))
            for number in range(self._pages_of(count))
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        numbers = [tuple(map(int, name.split(".")[1:])) for name in state]
        self._tables = [[] for _ in range(1 + max((index for index, _ in numbers), default=-1))]
        for index, number in sorted(numbers):
            self._tables[index].append(self._pages.allocate())
            name, page = f"page.{index}.{number}", self._pages.open(self._tables[index][number])
            check_rows(name, state[name], page)
            page.copy_(state[name])

    def close(self) -> None:
        self._pages.close()
        self._stream.close()
        self._tables = []

    def _pages_of(self, slots: int) -> int:
        return -(-slots // self._layout.slots)
