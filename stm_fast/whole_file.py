"""Files and folders are written whole or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stm_fast.errors import InputError, reading

# what partial_path() names match
LEFT_OVER = ".*.partial"


def partial_path(path: Path) -> Path:
    """Where a file is while it is written: hidden, in the same folder, so that a rename makes it final.

    Raises InputError where `path` names no file, as "/" does.
    """
    if not path.name:
        raise InputError(f"cannot write {path}: found a folder, expected the name of a file")
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def new_partial(path: Path) -> Path:
    """`partial_path`, emptied. Raises InputError where that is not possible, or `path` is a device or a pipe."""
    partial = partial_path(path)
    # a rename would put a file in its place
    with writing(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"cannot write {path}: found a device or a pipe, expected a file")
        # in a container a process that was killed had the id of this one
        _remove(partial)
    return partial


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises InputError where that is not possible."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def refuse_links(*folders: Path) -> None:
    """Raises InputError where a folder in which files are replaced or removed is a link: behind it they are others'."""
    for folder in folders:
        with reading(folder):
            if folder.is_symlink():
                found = f"a symbolic link to {folder.readlink()}"
                raise InputError(f"{folder}: found {found}, expected a folder of its own: files in it are replaced")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file or folder; not where one of them leads nowhere."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def refuse_input(target: Path, inputs: Iterable[Path]) -> None:
    """Raises InputError where what is to be written would take the place of something that is read."""
    for path in inputs:
        if same_file(target, path):
            raise InputError(f"{target}: found as input and as output, expected another name for what is written")


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
    partial = new_partial(path)
    try:
        with writing(path):
            yield partial
            _put_in_place(partial, path, durable)
    finally:
        with suppress(OSError):  # what went wrong first says why
            partial.unlink()


@contextmanager
def whole_file_in_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """As `whole_file`, with a path in a folder of its own: for what writes more files beside the one it is given."""
    with _scratch_folder(path) as folder, writing(path):
        folder.mkdir()
        yield folder / path.name
        _put_in_place(folder / path.name, path, durable)


def remove_left_over(folder: Path, name: str | None = None) -> None:
    """Removes what processes that were killed had begun to write.

    Args:
        name: of the one file or folder whose beginnings are meant; all where it is not given.
    """
    # as partial_path() names them, and not those of another name that begins alike
    pattern = re.compile(rf"\.{'.*' if name is None else re.escape(name)}\.\d+\.partial")
    for path in folder.glob(LEFT_OVER):
        if pattern.fullmatch(path.name) is not None:
            with writing(path):
                _remove(path)


def _remove(path: Path) -> None:
    """Removes what is there, if anything: a folder with all that is in it, of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(partial: Path, path: Path, durable: bool) -> None:
    if durable:
        sync(partial)
    os.replace(partial, path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Folder to fill inside the block; renamed to `path` at its end, removed if the block raises."""
    with _scratch_folder(path) as partial:
        make_folder(partial)
        yield partial
        with writing(path):
            partial.rename(path)


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """Where there is no folder yet, and none after the block."""
    folder = new_partial(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
