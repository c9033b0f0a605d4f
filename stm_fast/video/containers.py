"""Facts about container files that FFmpeg reads but does not report."""

import os
from typing import BinaryIO

_SEGMENT = 0x18538067
_SHORT_HEADER, _LONG_HEADER = 8, 16


def size_of(file: BinaryIO) -> int:
    """The size of a file in bytes."""
    return file.seek(0, os.SEEK_END)


def is_fragmented(file: BinaryIO) -> bool:
    """Whether an MP4 or MOV file has fragments with their own indexes, or does not consist of boxes up to its end.

    A box is its length, its name and its content (ISO/IEC 14496-12, section 4.2).
    """
    size = size_of(file)
    at = 0
    while at < size:
        file.seek(at)
        header = file.read(_LONG_HEADER)
        length, name, smallest = int.from_bytes(header[:4], "big"), header[4:_SHORT_HEADER], _SHORT_HEADER
        if length == 1:
            length, smallest = int.from_bytes(header[_SHORT_HEADER:], "big"), _LONG_HEADER
        if name == b"moof" or 0 < length < smallest:
            return True
        # length 0: the box extends to the end of the file
        at = at + length if length else size
    return at > size


def stated_end(file: BinaryIO) -> int | None:
    """The byte offset at which the first segment of a Matroska or WebM file ends.

    None if the file does not say, as for live recordings. Elements are an id, a length and their content (RFC 8794,
    sections 4 to 6); the segment comes second, after a header (RFC 9559, section 4.5).
    """
    size = size_of(file)
    file.seek(0)
    while (name := _number(file, keep_marker=True)) is not None:
        length = _number(file, keep_marker=False)
        if length is None:
            return None
        if name == _SEGMENT:
            return file.tell() + length
        # seek() cannot take an arbitrarily large length
        if length > size:
            return None
        file.seek(length, 1)
    return None


def _number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """The next variable-length number: its leading zero bits count the bytes that follow the first.

    None at the end of the file, for an invalid number, and for all ones, which stand for an unknown length.
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
