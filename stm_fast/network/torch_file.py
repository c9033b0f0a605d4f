"""Reads untrusted files of `torch.save`: no code is run, and memory is limited by the size of the file."""

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
_MAX_COMMENT = 2**16 - 1
_MAX_DIRECTORY = 2**20  # bytes, of about 10,000 tensors
_MAX_PICKLE = 2**24  # bytes, without the tensors' data
_CHUNK = 2**20
# data that trainers store next to weights; it is skipped, and none of these modules is imported
_PLAIN_DATA = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "numpy.bool", "numpy.bool_", "numpy.float32", "numpy.float64", "numpy.int64"),
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    *(f"pathlib.{place}{name}" for place in ("", "_local.") for name in ("Path", "PosixPath", "WindowsPath")),
)


class SkippedObject:
    """Stands for an object in a file that is neither a tensor nor a plain Python value."""

    def __new__(cls, *_: object) -> "SkippedObject":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class InvalidFileError(Exception):
    """A file is not an intact file of `torch.save`; the message says why."""


def load_torch_file(path: Path, *, mapped: bool) -> Any:
    """The content of a file of `torch.save`, on the CPU: tensors, plain values, and `SkippedObject` for other objects.

    A file in PyTorch's current format is first read as a whole to verify its checksums.

    Args:
        path: of the file.
        mapped: whether to memory-map the tensors of that format.

    Raises:
        InvalidFileError: another format, a damaged file, one that contains code, or one whose records are larger than
            the file.
        InputError: the file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
        if zipped:
            _check_zip(file)
        file.seek(0)
        # torch.load reads files named .safetensors as such
        if mapped and zipped and path.suffix != ".safetensors":
            return _load(path, mmap=True)
        return _load(file, mmap=False)


def _load(source: Path | BinaryIO, *, mmap: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals([(SkippedObject, name) for name in _PLAIN_DATA]):
        warnings.simplefilter("ignore")  # about unusual tensors, which callers refuse
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
        # damaged or hostile files can raise any exception
        except Exception as error:
            code = re.search(r"GLOBAL (\S{1,99}) was not an allowed global", str(error))
            raise InvalidFileError(f"it holds code, {code[1]}" if code else type(error).__name__) from error


def _check_zip(file: BinaryIO) -> None:
    """Raises InvalidFileError if the records of an archive do not match its directory."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _MAX_COMMENT - _ZIP_END_BYTES))
    _, found, end = file.read().rpartition(_ZIP_END)
    if not found or len(end) < _ZIP_END_BYTES - len(_ZIP_END):
        raise InvalidFileError("its end is missing")
    if struct.unpack_from("<I", end, 8)[0] > _MAX_DIRECTORY:
        raise InvalidFileError("too many records")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_records(archive, size)
    # zipfile raises many kinds of exceptions for damaged bytes
    except InvalidFileError:
        raise
    except Exception as error:
        raise InvalidFileError(f"it is damaged: {type(error).__name__}") from error


def _check_records(archive: zipfile.ZipFile, size: int) -> None:
    records = archive.infolist()
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size for record in records
    ):
        raise InvalidFileError("compressed records, which torch.save does not write")
    if sum(record.file_size for record in records) > size:
        raise InvalidFileError("records of more bytes than the file has")
    if any(record.filename.endswith("/data.pkl") and record.file_size > _MAX_PICKLE for record in records):
        raise InvalidFileError("too many entries")
    if not any(record.CRC for record in records):
        return  # written without checksums, see torch.serialization.set_crc32_options
    for record in records:
        with archive.open(record) as content:
            while content.read(_CHUNK):  # zipfile verifies the checksum at the end
                pass
