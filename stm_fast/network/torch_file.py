"""Untrusted files of `torch.save`: their code is not run, and they take no more memory than they have bytes."""

import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stm_fast.errors import reading

_ZIP = b"PK\3\4"
_ZIP_END = b"PK\5\6"  # followed by 18 bytes, with the directory's length at 8, and a comment
_ZIP_END_BYTES = 22
_LONGEST_COMMENT = 2**16 - 1
_LARGEST_DIRECTORY = 2**20  # 10,000 tensors
_LARGEST_PICKLE = 2**24  # without the tensors' bytes
_CHUNK = 2**20
# data that trainers store next to weights; it is skipped, so none of these modules is imported or run
_PLAIN_DATA = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "numpy.bool", "numpy.bool_", "numpy.float32", "numpy.float64", "numpy.int64"),
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    *(f"pathlib.{place}{name}" for place in ("", "_local.") for name in ("Path", "PosixPath", "WindowsPath")),
)


class PassedOver:
    """Replaces an object of a file that is neither a tensor nor a plain Python value."""

    def __new__(cls, *_: object) -> "PassedOver":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class RefusedFileError(Exception):
    """Why a file is not an intact one of `torch.save`."""


def load_torch_file(path: Path, *, mapped: bool) -> Any:
    """The content of a file of `torch.save`, on the CPU: tensors, plain values, and `PassedOver` for some objects.

    A file in PyTorch's current format is read once as a whole to verify its checksums.

    Args:
        mapped: tensors of that format are memory-mapped, and read when they are used.

    Raises:
        RefusedFileError: a file that is something else, damaged, contains code, or announces more than it has. The
            message says which.
        InputError: it cannot be read.
    """
    with reading(path), path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
        if zipped:
            _check_zip(file)
        file.seek(0)
        # torch.load takes some files for safetensors because of their name
        if mapped and zipped and path.suffix != ".safetensors":
            return _load(path, mmap=True)
        return _load(file, mmap=False)


def _load(source: Path | BinaryIO, *, mmap: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals([(PassedOver, name) for name in _PLAIN_DATA]):
        warnings.simplefilter("ignore")  # of unusual tensors, which whoever asked refuses
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
        # a damaged or hostile file can make the reader raise anything
        except Exception as error:
            code = re.search(r"GLOBAL (\S{1,99}) was not an allowed global", str(error))
            raise RefusedFileError(f"it holds code, {code[1]}" if code else type(error).__name__) from error


def _check_zip(file: BinaryIO) -> None:
    """Raises RefusedFileError if the records of an archive do not match its directory."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _LONGEST_COMMENT - _ZIP_END_BYTES))
    _, found, end = file.read().rpartition(_ZIP_END)
    if not found or len(end) < _ZIP_END_BYTES - len(_ZIP_END):
        raise RefusedFileError("its end is missing")
    if struct.unpack_from("<I", end, 8)[0] > _LARGEST_DIRECTORY:
        raise RefusedFileError("too many records")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_records(archive, size)
    # zipfile raises a dozen kinds of errors at damaged bytes
    except RefusedFileError:
        raise
    except Exception as error:
        raise RefusedFileError(f"it is damaged: {type(error).__name__}") from error


def _check_records(archive: zipfile.ZipFile, size: int) -> None:
    records = archive.infolist()
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size for record in records
    ):
        raise RefusedFileError("compressed records, which torch.save does not write")
    if sum(record.file_size for record in records) > size:
        raise RefusedFileError("records of more bytes than the file has")
    if any(record.filename.endswith("/data.pkl") and record.file_size > _LARGEST_PICKLE for record in records):
        raise RefusedFileError("too many entries")
    if not any(record.CRC for record in records):
        return  # torch.serialization.set_crc32_options(False) leaves checksums out
    for record in records:
        with archive.open(record) as content:
            while content.read(_CHUNK):  # compares the checksum at its end
                pass
