"""A lock on a folder, which only one process at a time holds."""

import os
from pathlib import Path

from stm_fast.errors import InputError
from stm_fast.system import NO_LINK, lock
from stm_fast.whole_file import writing

LOCK = ".lock"


class FolderLock:
    """Held until it is closed or the process ends, however it ends.

    Raises InputError if another one holds it, or if the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with writing(folder / LOCK):
            self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
            try:
                lock(self._file)
            except (BlockingIOError, PermissionError):
                os.close(self._file)
                raise InputError(f"{folder}: open in another process or page, expected one at a time") from None

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._file)
