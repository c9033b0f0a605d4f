"""Pages of bytes outside the model's device: in host memory, or in an unnamed file on disk."""

import errno
import mmap
import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.system import allocate, announce_read


class Pages(ABC):
    """Numbered pages of one size. Freed pages are reused."""

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._count = 0
        self._free: list[int] = []

    @property
    def nbytes(self) -> int:
        """Size of all pages, freed ones included."""
        return self._page_bytes * self._count

    def allocate(self) -> int:
        """The number of a page with arbitrary content."""
        if self._free:
            return self._free.pop()
        self._add()
        self._count += 1
        return self._count - 1

    def free(self, page: int) -> None:
        """Makes a page available for reuse."""
        self._free.append(page)

    @abstractmethod
    def open(self, page: int) -> Tensor:
        """The page's bytes, uint8 [page_bytes], to read and write; do not keep them longer than needed."""

    def prefetch(self, page: int) -> None:
        """Announces that the page will be opened soon."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Releases everything."""

    @abstractmethod
    def _add(self) -> None:
        """Adds one page at the end."""


class HostPages(Pages):
    """Pages in host memory, pinned if a GPU will copy them."""

    def __init__(self, page_bytes: int, *, pinned: bool) -> None:
        super().__init__(page_bytes)
        self._pinned = pinned
        self._pages: list[Tensor] = []

    def open(self, page: int) -> Tensor:
        return self._pages[page]

    def close(self) -> None:
        self._pages, self._free, self._count = [], [], 0

    def _add(self) -> None:
        self._pages.append(torch.empty(self._page_bytes, dtype=torch.uint8, pin_memory=self._pinned))


class DiskPages(Pages):
    """Pages of a file in a folder, mapped into memory one at a time.

    The file has no name in the folder, so the system removes it with the process, however that ends. Space is allocated
    before it is written: a full disk gives an InputError, not a crash in the middle of a write. Raises InputError if
    the folder is missing or cannot be written.
    """

    def __init__(self, page_bytes: int, folder: Path) -> None:
        super().__init__(page_bytes + -page_bytes % mmap.ALLOCATIONGRANULARITY)
        self._used_bytes, self._folder = page_bytes, folder
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            raise InputError(f"{folder}: cannot keep the memory there: {error.strerror or error}") from None
        self._closing = weakref.finalize(self, os.close, self._file)

    def open(self, page: int) -> Tensor:
        # unmapped with the tensor: mapped pages count as resident memory of this process
        mapped = mmap.mmap(self._file, self._used_bytes, offset=page * self._page_bytes)
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def prefetch(self, page: int) -> None:
        announce_read(self._file, page * self._page_bytes, self._page_bytes)

    def close(self) -> None:
        self._closing()

    def _add(self) -> None:
        try:
            allocate(self._file, self.nbytes, self._page_bytes)
        except OSError as error:
            why = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error.strerror
            raise InputError(f"{self._folder}: {why} after {self.nbytes / 1e9:.1f} GB of memory rows") from None
