"""How long a Matroska or WebM file says that it is, which FFmpeg reads and does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_SEGMENT = 0x18538067


def stated_end(path: Path) -> int | None:
    """The byte at which the first segment of a file ends; None where the file does not say, as live recordings.

    Elements are an id, a length and their content (RFC 8794, sections 4 to 6); the segment comes second, behind a
    header (RFC 9559, section 4.5).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while (name := _number(file, keep_marker=True)) is not None:
            length = _number(file, keep_marker=False)
            if length is None:
                return None
            if name == _SEGMENT:
                return file.tell() + length
            # no file system has a place for any length
            if length > size:
                return None
            file.seek(length, 1)
    return None


def _number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """The next number of variable length: its leading zero bits count the bytes that follow the first.

    None at the end of the file, where it is none, and where all its bits are set, which stands for an unknown length.
    """
    first = file.read(1)
    if not first or not first[0]:
        return None
    following = 8 - first[0].bit_length()
    number = int.from_bytes(first + file.read(following), "big")
    marker = 1 << (7 * (following + 1))
    if keep_marker:
        return number
    return None if number == 2 * marker - 1 else number - marker
