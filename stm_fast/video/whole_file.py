"""Files are written whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stm_fast.errors import InputError

# what partial_path() names match
LEFT_OVER = ".*.partial"


def partial_path(path: Path) -> Path:
    """Where a file is while it is written: hidden, in the same folder, so that a rename makes it final."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises InputError where that is not possible."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors inside the block into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"disk full while writing {path}") from error
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Path to write to inside the block; renamed to `path` at its end, removed if the block raises."""
    partial = partial_path(path)
    try:
        with writing(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
