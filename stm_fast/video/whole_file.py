"""Files and folders are written whole or not at all."""

import errno
import os
import shutil
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
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Path to write to inside the block; renamed to `path` at its end, removed if the block raises.

    Args:
        durable: wait until it is on the disk: then the file is there, and whole, after a loss of power too.
    """
    partial = partial_path(path)
    try:
        with writing(path):
            yield partial
            if durable:
                _sync(partial)
            os.replace(partial, path)
            if durable:
                _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Folder to fill inside the block; renamed to `path` at its end, removed if the block raises."""
    partial = partial_path(path)
    try:
        make_folder(partial)
        yield partial
        with writing(path):
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
