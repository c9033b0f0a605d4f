"""Whether the index of an MP4 or MOV file is all of it, which FFmpeg does not tell."""

from __future__ import annotations

from pathlib import Path

_SHORT_HEADER, _LONG_HEADER = 8, 16


def is_fragmented(path: Path) -> bool:
    """Whether a file has parts behind its index that have indexes of their own, or is not made of boxes to its end.

    A box is its length, its name and its content (ISO/IEC 14496-12, section 4.2).
    """
    size = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            header = file.read(_LONG_HEADER)
            length, name, smallest = int.from_bytes(header[:4], "big"), header[4:_SHORT_HEADER], _SHORT_HEADER
            if length == 1:
                length, smallest = int.from_bytes(header[_SHORT_HEADER:], "big"), _LONG_HEADER
            if name == b"moof" or 0 < length < smallest:
                return True
            # without a length a box goes on to the end of the file
            at = at + length if length else size
    return at > size
