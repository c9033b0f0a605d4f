"""Tensors are written whole or not at all, equal ones as equal bytes, and with a checksum where they are read again."""

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
# the entry of the metadata that holds the checksum of all the file, in which it is zero itself. CRC-32 finds every
# damage of up to 32 bits in a row, and others but for one in four billion; SHA-256 takes longer
_CHECKSUM, _NO_CHECKSUM = "crc32", "00000000"
_LENGTH_BYTES = 8  # of the header's length, which a file begins with
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
        checksum: for `read_tensors`; it is one more entry of the metadata.

    Raises:
        InputError: it cannot be written.
    """
    if checksum:
        metadata = {**(metadata or {}), _CHECKSUM: _NO_CHECKSUM}
    # safetensors writes to a hidden file of its own beside the one that it is given, and a process that is killed
    # leaves that file: so both are in a folder whose name says what it is
    try:
        with whole_file_in_folder(path, durable=durable) as file:
            # that hidden file can be read by its owner alone
            file.touch()
            usual_mode = file.stat().st_mode
            safetensors.torch.save_file(tensors, file, metadata)
            file.chmod(usual_mode)
            _complete(file, tensors if checksum else None)
    except SafetensorError as error:
        # it has the system's reason in words alone
        full = os.strerror(errno.ENOSPC) in str(error)
        raise InputError(f"disk full while writing {path}" if full else f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file that `write_tensors` wrote with a checksum.

    All of the file is read once. The tensors are mapped: they take memory when they are used.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not as it was written, in any bit.
    """
    with path.open("rb") as stream:
        header, length = _read_header(stream)
        metadata = header.get(_METADATA)
        if not isinstance(metadata, dict) or _CHECKSUM not in metadata:
            raise ValueError("it has no checksum")
        stated = metadata[_CHECKSUM]
        stream.seek(_LENGTH_BYTES)
        if stream.read(length) != _encoded(header, length):
            raise ValueError("its header is not as it was written")
        metadata[_CHECKSUM] = _NO_CHECKSUM
        found = _checksum_of_header(header, length)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while count := stream.readinto(buffer):
            found = zlib.crc32(buffer[:count], found)
    if stated != f"{found:08x}":
        raise ValueError("its checksum is not that of its content")
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    del metadata[_CHECKSUM]
    return tensors, metadata


def _complete(file: Path, tensors: dict[str, Tensor] | None) -> None:
    """Sorts the entries of a header, which safetensors writes in another order every time; adds the checksum, if any.

    Args:
        tensors: of the file, where it gets a checksum.
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
    """The header of a file, and its length in bytes. Raises ValueError where it is none."""
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if length > os.fstat(stream.fileno()).st_size:
        raise ValueError("it is cut off, or no safetensors file")
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError("its header is damaged")
    return header, length


def _encoded(header: dict[str, Any], length: int) -> bytes:
    """A header of this many bytes, with sorted names."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)


def _checksum_of_header(header: dict[str, Any], length: int) -> int:
    return zlib.crc32(length.to_bytes(_LENGTH_BYTES, "little") + _encoded(header, length))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
