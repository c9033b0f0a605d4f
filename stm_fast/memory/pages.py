"""Pages of bytes outside the model's device: in host memory, or in a file on disk that has no name."""

import errno
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stm_fast.errors import InputError


class Pages(Protocol):
    """Pages of one size, by number. Freed ones are used again."""

    @property
    def nbytes(self) -> int:
        """What the pages take, freed ones included."""
        ...

    def allocate(self) -> int:
        """The number of a page whose content is anything."""
        ...

    def free(self, page: int) -> None: ...

    def open(self, page: int) -> Tensor:
        """The page's bytes, uint8 [page_bytes], to read and write; do not keep them longer than needed."""
        ...

    def expect(self, page: int) -> None:
        """Says that the page will be opened soon."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...


class HostPages:
    """Pages in host memory, pinned where a GPU will copy them."""

    def __init__(self, page_bytes: int, *, pinned: bool) -> None:
        self._page_bytes, self._pinned = page_bytes, pinned
        self._pages: list[Tensor] = []
        self._free: list[int] = []

    @property
    def nbytes(self) -> int:
        return self._page_bytes * len(self._pages)

    def allocate(self) -> int:
        if self._free:
            return self._free.pop()
        self._pages.append(torch.empty(self._page_bytes, dtype=torch.uint8, pin_memory=self._pinned))
        return len(self._pages) - 1

    def free(self, page: int) -> None:
        self._free.append(page)

    def open(self, page: int) -> Tensor:
        return self._pages[page]

    def expect(self, page: int) -> None:
        pass

    def close(self) -> None:
        self._pages, self._free = [], []


class DiskPages:
    """Pages of a file in a folder, mapped into memory one at a time.

    The file has no name in the folder: the system removes it with the process, however that ends. Space is taken
    before it is written: a disk that is full is an InputError and not a crash in the middle of a write.

    Raises:
        InputError: a folder that is missing or cannot be written.
    """

    def __init__(self, page_bytes: int, folder: Path) -> None:
        self._page_bytes = page_bytes + -page_bytes % mmap.ALLOCATIONGRANULARITY
        self._used_bytes, self._folder = page_bytes, folder
        self._count = 0
        self._free: list[int] = []
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            raise InputError(f"{folder}: cannot keep the memory there: {error.strerror or error}") from None
        self._closing = weakref.finalize(self, os.close, self._file)

    @property
    def nbytes(self) -> int:
        return self._page_bytes * self._count

    def allocate(self) -> int:
        if self._free:
            return self._free.pop()
        try:
            os.posix_fallocate(self._file, self._count * self._page_bytes, self._page_bytes)
        except OSError as error:
            why = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error.strerror
            raise InputError(f"{self._folder}: {why} after {self.nbytes / 1e9:.1f} GB of memory rows") from None
        self._count += 1
        return self._count - 1

    def free(self, page: int) -> None:
        self._free.append(page)

    def open(self, page: int) -> Tensor:
        # unmapped with the tensor: what is mapped counts as resident memory of this process
        mapped = mmap.mmap(self._file, self._used_bytes, offset=page * self._page_bytes)
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def expect(self, page: int) -> None:
        os.posix_fadvise(self._file, page * self._page_bytes, self._page_bytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        self._closing()
