"""Masks of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), which are MATLAB files.

Reads level 5 files, which MATLAB versions 5 to 7 write, as MathWorks' "MAT-File Format" specifies them. Every size in a
file is checked before it is used.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stm_fast.data.source import Bytes
from stm_fast.errors import InputError, reading, require_file

# instances of `inst/*.mat`, classes of `cls/*.mat`
_NAMES = ("GTinst", "GTcls")
_FIELD = b"Segmentation"
# of a file, and of its contents decompressed: a mask of 8192x8192 at a byte per pixel. SBD's masks are 500x500
_MAX_BYTES = 2**26
_MAX_NAMES = 2**16  # bytes of all field names

_HEADER, _TAG = 128, 8  # bytes
_ORDERS = {b"IM": "<", b"MI": ">"}  # byte orders, little and big endian
_VERSION, _VERSION_7_3 = 0x100, 0x200
# types of elements
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_TEXT = (1, 2, 16)  # of names: int8, uint8, UTF-8
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# classes of variables, and a flag
_STRUCT, _NUMERIC = 2, range(6, 16)
_COMPLEX = 1 << 11

_Elements = Iterator[tuple[int, memoryview]]


def read_mat(file: Path) -> Bytes:
    """Object ids uint8 [H, W] of a file of `inst`, or class ids of a file of `cls`.

    Raises:
        InputError: no such file, not a MATLAB file of level 5, or one that is damaged, too large or without a mask.
    """
    require_file(file, "a mask of SBD")
    with reading(file):
        size = file.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(f"{file}: {size} bytes, expected at most {_MAX_BYTES}")
        content = memoryview(file.read_bytes())
    try:
        masks = dict(_masks(content))
    except InputError as error:
        raise InputError(f"{file}: not a readable MATLAB file of SBD ({error})") from None
    for name in _NAMES:
        if name in masks:
            return masks[name]
    raise InputError(f"{file}: found no Segmentation of GTinst or GTcls, expected a mask of SBD")


def _masks(content: memoryview) -> Iterator[tuple[str, Bytes]]:
    """The masks in a file with the names of their variables; other variables are skipped. Raises InputError."""
    order = _order(bytes(content[:_HEADER]))
    most = _MAX_BYTES
    for kind, data in _elements(content[_HEADER:], order):
        variable = data
        if kind == _COMPRESSED:
            kind, variable = _inflated(data, order, most)
            most -= len(variable)
        if kind != _MATRIX:
            raise InputError(f"element of type {kind}, expected a variable")
        yield from _masks_of(variable, order)


def _order(header: bytes) -> str:
    """The byte order of a file, "<" or ">". Raises InputError for other formats."""
    order = _ORDERS.get(header[_HEADER - 2 :])
    if order is None:
        raise InputError("no header of MATLAB's format, level 5")
    (version,) = struct.unpack(f"{order}H", header[_HEADER - 4 : _HEADER - 2])
    if version == _VERSION_7_3:
        raise InputError("version 7.3, expected version 7 or before: save with '-v7'")
    if version != _VERSION:
        raise InputError(f"version {version:#x} of the format, expected {_VERSION:#x}")
    return order


def _elements(data: memoryview, order: str) -> _Elements:
    """Type and content of consecutive elements. Raises InputError."""
    at = 0
    while at < len(data):
        if len(data) - at < _TAG:
            raise InputError("it ends within a tag")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        begin, following = at + _TAG, at + _TAG + size
        if kind >> 16:  # a short element is stored in its tag
            kind, size = kind & 0xFFFF, kind >> 16
            begin, following = at + _TAG // 2, at + _TAG
            if size > _TAG // 2:
                raise InputError(f"{size} bytes within a tag, expected at most {_TAG // 2}")
        elif kind != _COMPRESSED:
            following += -size % _TAG
        if begin + size > len(data):
            raise InputError("it ends within an element")
        yield kind, data[begin : begin + size]
        at = following


def _inflated(data: memoryview, order: str, most: int) -> tuple[int, memoryview]:
    """Type and content of a compressed element. Raises InputError for more bytes than `most`."""
    inflater = zlib.decompressobj()
    try:
        tag = inflater.decompress(data, _TAG)
        if len(tag) < _TAG:
            raise InputError("compressed bytes that end within a tag")
        kind, size = struct.unpack(f"{order}II", tag)
        if size > most:
            raise InputError(f"{size} compressed bytes, expected at most {most}")
        content = inflater.decompress(inflater.unconsumed_tail, size + 1)
    except zlib.error as error:
        raise InputError(f"{error}") from None
    if len(content) != size or not inflater.eof:
        raise InputError(f"decompressed size differs from the stated {size} bytes")
    return kind, memoryview(content)


def _masks_of(variable: memoryview, order: str) -> Iterator[tuple[str, Bytes]]:
    """Yields the name and mask of a variable, if it has a mask. Raises InputError."""
    parts = _elements(variable, order)
    if _flags(parts, order) % 256 != _STRUCT:
        return
    shape, name = _shape(parts, order), str(_next(parts, *_TEXT), "latin-1")
    if name not in _NAMES or shape != (1, 1):
        return
    for field in _fields(parts, order):
        content = _next(parts, _MATRIX)
        if field == _FIELD:
            yield name, _ids(content, order)


def _ids(matrix: memoryview, order: str) -> Bytes:
    """A matrix of numbers of any stored type, as uint8 [H, W]. Raises InputError for anything else."""
    parts = _elements(matrix, order)
    flags, shape = _flags(parts, order), _shape(parts, order)
    if flags % 256 not in _NUMERIC or flags & _COMPLEX or not shape or 0 in shape:
        raise InputError("Segmentation is not a matrix of numbers")
    _next(parts, *_TEXT)  # its name, which is empty
    kind, data = next(parts, (0, memoryview(b"")))
    dtype = np.dtype(order + _NUMBERS.get(kind, "V1"))
    height, width = shape
    if kind not in _NUMBERS or len(data) != height * width * dtype.itemsize:
        raise InputError(f"{len(data)} bytes of type {kind}, expected numbers for {width}x{height} pixels")
    numbers = np.frombuffer(data, dtype)
    if not (numbers.min() >= 0 and numbers.max() <= np.iinfo(np.uint8).max):
        raise InputError("Segmentation: numbers outside 0 to 255")
    ids = numbers.astype(np.uint8)
    if (ids != numbers).any():
        raise InputError("Segmentation: numbers that are not whole")
    return np.ascontiguousarray(ids.reshape(width, height).T)


def _flags(parts: _Elements, order: str) -> int:
    """The class of a variable, in the lowest byte, and its flags."""
    content = _next(parts, _UINT32)
    if len(content) != 8:
        raise InputError(f"{len(content)} bytes of flags, expected 8")
    flags: int = struct.unpack_from(f"{order}I", content)[0]
    return flags


def _shape(parts: _Elements, order: str) -> tuple[int, int] | None:
    """Rows and columns of a variable; None if it has more dimensions."""
    shape = _next(parts, _INT32)
    return struct.unpack(f"{order}2I", shape) if len(shape) == 8 else None


def _fields(parts: _Elements, order: str) -> list[bytes]:
    """The names of the fields of a structure."""
    size = _next(parts, _INT32)
    names = bytes(_next(parts, *_TEXT))
    length = struct.unpack(f"{order}I", size)[0] if len(size) == 4 else 0
    if not 0 < length <= len(names) <= _MAX_NAMES:
        raise InputError(f"{len(names)} bytes of names, {length} for each field")
    return [names[at : at + length].split(b"\0")[0] for at in range(0, len(names), length)]


def _next(parts: _Elements, *kinds: int) -> memoryview:
    """The content of the next element. Raises InputError if there is none, or it has another type."""
    expected = " or ".join(map(str, kinds))
    for kind, content in parts:
        if kind not in kinds:
            raise InputError(f"element of type {kind}, expected {expected}")
        return content
    raise InputError(f"a variable that ends before an element of type {expected}")
