"""What macOS and Windows do differently from Linux, on which alone everything has run (docs/install.md)."""

import os
import sys
from pathlib import Path

# of os.open: bytes as they are, which Windows would change, and no symbolic link, which Windows cannot refuse
AS_BYTES: int = getattr(os, "O_BINARY", 0)
NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_BLOCK = bytes(2**20)

if sys.platform == "win32":
    import msvcrt

    def lock(file: int) -> None:
        """Locks an open file until it is closed. Raises PermissionError if another process holds it."""
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def lock(file: int) -> None:
        """Locks an open file until it is closed. Raises BlockingIOError if it is locked through another descriptor."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def allocate(file: int, start: int, length: int) -> None:
    """Takes space on disk for bytes of an open file, whose content is lost. Raises OSError if there is not enough."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, start, length)
        return
    os.lseek(file, start, os.SEEK_SET)
    while length > 0:
        length -= os.write(file, _BLOCK[:length])


def announce_read(file: int, start: int, length: int) -> None:
    """Tells the system that bytes of an open file will be read soon, if it can be told."""
    if sys.platform == "linux":
        os.posix_fadvise(file, start, length, os.POSIX_FADV_WILLNEED)


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on disk. Windows cannot be asked for the entries."""
    windows, folder = sys.platform == "win32", path.is_dir()
    if windows and folder:
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def may_share_ports() -> bool:
    """Whether SO_REUSEADDR lets two servers have one port, as on Windows, and not only one after the other."""
    return sys.platform == "win32"
