"""One process at a time writes into an output folder, where the file system can tell (not on Windows, nor on all NFS).

The worker of a run that was given to another machine, since it was thought lost, may still live for a moment.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stm_fast.errors import InputError
from stm_fast.system import lock

_PATIENCE = 10.0  # seconds
_POLL_SECONDS = 0.1


class SoleWriter:
    """The claim of this process on a folder; see `sole_writer`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def claim(self) -> None:
        """Waits until no other process claims the folder, if it exists. Raises InputError if that takes ten seconds."""
        if self._file is not None:
            return
        with suppress(OSError):
            self._file = os.open(self._folder, os.O_RDONLY)
        end = time.monotonic() + _PATIENCE
        while self._file is not None:
            try:
                lock(self._file)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise InputError(f"{self._folder}: another process writes into this folder") from None
                time.sleep(_POLL_SECONDS)
            except OSError:  # a file system without locks
                return
            else:
                return

    def release(self) -> None:
        """Ends the claim."""
        if self._file is not None:
            os.close(self._file)


@contextmanager
def sole_writer(folder: Path) -> Iterator[SoleWriter]:
    """A claim on a folder, which ends with the block or the process, however that ends."""
    writer = SoleWriter(folder)
    try:
        yield writer
    finally:
        writer.release()
