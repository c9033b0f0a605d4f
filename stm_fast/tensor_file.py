"""Files of tensors: written completely or not at all, equal bytes for equal tensors, with an optional checksum."""

import errno
import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.whole_file import whole_file_in_folder

_METADATA = "__metadata__"
# the metadata entry with the checksum of the whole file, computed with zeros in this entry. CRC-32 detects every burst
# of up to 32 damaged bits, and all but one in four billion other errors; SHA-256 is slower
_CHECKSUM, _NO_CHECKSUM = "crc32", "00000000"
_LENGTH_BYTES = 8  # of the header's length, at the start of the file
_CHUNK_BYTES = 2**22


def write_tensors(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str] | None = None,
    *,
    durable: bool = False,
    checksum: bool = False,
) -> None:
    """Writes a safetensors file.

    Args:
        tensors: contiguous.
        durable: as in `whole_file`.
        checksum: adds a metadata entry, which `read_tensors` needs.

    Raises:
        InputError: it cannot be written.
    """
    if checksum:
        metadata = {**(metadata or {}), _CHECKSUM: _NO_CHECKSUM}
    # safetensors writes to a hidden temporary file next to the given one, which a killed process leaves behind, so both
    # are in a folder whose name marks it as partial
    try:
        with whole_file_in_folder(path, durable=durable) as file:
            # the temporary file is readable by its owner only
            file.touch()
            usual_mode = file.stat().st_mode
            safetensors.torch.save_file(tensors, file, metadata)
            file.chmod(usual_mode)
            _complete(file, tensors if checksum else None)
    except SafetensorError as error:
        # the exception has the system's reason only as text
        full = os.strerror(errno.ENOSPC) in str(error)
        raise InputError(f"disk full while writing {path}" if full else f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file that `write_tensors` wrote with a checksum.

    The whole file is read once. The tensors are memory-mapped: they occupy memory when used.

    Raises:
        OSError: it cannot be read.
        ValueError: any bit differs from what was written.
    """
    with path.open("rb") as stream:
        header, length = _read_header(stream)
        metadata = header.get(_METADATA)
        if not isinstance(metadata, dict) or _CHECKSUM not in metadata:
            raise ValueError("it has no checksum")
        stated = metadata[_CHECKSUM]
        stream.seek(_LENGTH_BYTES)
        if stream.read(length) != _encoded(header, length):
            raise ValueError("its header was changed")
        metadata[_CHECKSUM] = _NO_CHECKSUM
        found = _checksum_of_header(header, length)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while count := stream.readinto(buffer):
            found = zlib.crc32(buffer[:count], found)
    if stated != f"{found:08x}":
        raise ValueError("its checksum does not match its content")
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    del metadata[_CHECKSUM]
    return tensors, metadata


def _complete(file: Path, tensors: dict[str, Tensor] | None) -> None:
    """Sorts the header's entries, whose order varies between runs of safetensors, and adds the checksum, if any.

    Args:
        tensors: the file's tensors, if it gets a checksum.
    """
    with file.open("r+b") as stream:
        header, length = _read_header(stream)
        if tensors is not None:
            checksum = _checksum_of_header(header, length)
            for name in sorted(tensors, key=lambda name: tuple(header[name]["data_offsets"])):
                checksum = zlib.crc32(_bytes_of(tensors[name]), checksum)
            header[_METADATA][_CHECKSUM] = f"{checksum:08x}"
        stream.seek(_LENGTH_BYTES)
        stream.write(_encoded(header, length))


def _read_header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a file, and its length in bytes. Raises ValueError if it is invalid."""
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if length > os.fstat(stream.fileno()).st_size:
        raise ValueError("it is truncated, or not a safetensors file")
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError("its header is damaged")
    return header, length


def _encoded(header: dict[str, Any], length: int) -> bytes:
    """The header with sorted names, padded to `length` bytes."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)


def _checksum_of_header(header: dict[str, Any], length: int) -> int:
    return zlib.crc32(length.to_bytes(_LENGTH_BYTES, "little") + _encoded(header, length))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
