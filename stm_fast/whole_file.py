"""Files and folders that are written completely or not at all."""

import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from stm_fast.errors import InputError, reading
from stm_fast.system import sync

# matches the names from partial_path()
LEFT_OVER = ".*.partial"


def partial_path(path: Path) -> Path:
    """The path of a file while it is written: hidden, in the same folder, so that a rename makes it final.

    Raises InputError if `path` does not name a file, as with "/".
    """
    if not path.name:
        raise InputError(f"cannot write {path}: found a folder, expected the name of a file")
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def new_partial(path: Path) -> Path:
    """`partial_path`, cleared. Raises InputError if that fails, or if `path` is a device or a pipe."""
    partial = partial_path(path)
    # a rename would replace the device or pipe by a file
    with writing(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"cannot write {path}: found a device or a pipe, expected a file")
        # in a container, a killed process may have had the same id
        _remove(partial)
    return partial


def in_memory(save: Callable[[IO[bytes]], object]) -> bytes:
    """What `save` writes into a file. PyTorch's own writers of files do not report failures, or end the process."""
    buffer = io.BytesIO()
    save(buffer)
    # not getbuffer(): after a view was not written to a full disk, Python 3.12.1 crashes
    return buffer.getvalue()


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents. Raises InputError if that fails."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def refuse_links(*folders: Path) -> None:
    """Raises InputError if a folder in which files will be replaced or removed is a symbolic link."""
    for folder in folders:
        with reading(folder):
            if folder.is_symlink():
                found = f"a symbolic link to {folder.readlink()}"
                raise InputError(f"{folder}: found {found}, expected a folder, because files in it are replaced")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same existing file or folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def refuse_input(target: Path, inputs: Iterable[Path]) -> None:
    """Raises InputError if `target` would overwrite one of the inputs."""
    for path in inputs:
        if same_file(target, path):
            raise InputError(f"{target}: found as both input and output, expected another name for the output")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns system errors inside the block into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"disk full while writing {path}") from error
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to inside the block; renamed to `path` at its end, removed if the block raises.

    Args:
        durable: waits until the file is on disk, so that it survives a power failure.
    """
    partial = new_partial(path)
    try:
        with writing(path):
            yield partial
            _put_in_place(partial, path, durable)
    finally:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink()


@contextmanager
def whole_file_in_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Like `whole_file`, with a path in a separate folder, for writers that create temporary files next to it."""
    with _scratch_folder(path) as folder, writing(path):
        folder.mkdir()
        yield folder / path.name
        _put_in_place(folder / path.name, path, durable)


def remove_left_over(folder: Path, name: str | None = None) -> None:
    """Removes partial files left by killed processes.

    Args:
        name: of the file or folder whose partial files are removed; by default, all partial files.
    """
    # exactly the names from partial_path(), not those of a longer name with the same start
    pattern = re.compile(rf"\.{'.*' if name is None else re.escape(name)}\.\d+\.partial")
    for path in folder.glob(LEFT_OVER):
        if pattern.fullmatch(path.name) is not None:
            with writing(path):
                _remove(path)


def _remove(path: Path) -> None:
    """Removes a file, a folder with its content, or a link but not its target; nothing if it does not exist."""
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


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill inside the block; renamed to `path` at its end, removed if the block raises.

    Args:
        replace: an earlier folder at `path` is removed then, with everything in it.
    """
    with _scratch_folder(path) as partial:
        make_folder(partial)
        yield partial
        with writing(path):
            if replace and path.is_dir():
                _replace_folder(partial, path)
            else:
                partial.rename(path)


def _replace_folder(partial: Path, path: Path) -> None:
    """Puts a folder in the place of an earlier one, which is removed."""
    with _scratch_folder(path.with_name(f"{path.name}.earlier")) as earlier:
        path.rename(earlier)
        try:
            partial.rename(path)
        except OSError:
            earlier.rename(path)
            raise


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """The path of a temporary folder, not created yet; removed after the block."""
    folder = new_partial(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
