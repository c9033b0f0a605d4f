"""A video that a browser sends: streamed to disk, whole or absent, and never in place of another file."""

import filecmp
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from anyio import to_thread

from stm_fast.errors import InputError, check_name
from stm_fast.whole_file import new_partial, writing

MOST_BYTES = 20 * 10**9
# of the disk, for masks and results
_LEFT_FREE = 10**9
# bytes that are written at a time
_BLOCK = 2**22
_MOST_NAMES = 1000


class TooLarge(InputError):
    """An upload that exceeds the limit."""


def most_bytes(folder: Path) -> int:
    """The largest video that may be sent to a folder."""
    with writing(folder):
        free = shutil.disk_usage(folder).free
    return max(0, min(MOST_BYTES, free - _LEFT_FREE))


async def receive(folder: Path, name: str, body: AsyncIterator[bytes], length: int | None) -> tuple[Path, bool]:
    """Writes a body to a file in a folder.

    Args:
        folder: where the file will be.
        name: of the file. If another file has it, a number is added; one with the same content is taken instead.
        body: the bytes as they come.
        length: of the body, if it is known.

    Returns:
        The file, and whether it is new.

    Raises:
        InputError: an invalid name, an empty or interrupted body, or a disk that cannot be written.
        TooLarge: more than `most_bytes`.
    """
    check_name(name, "name of the video")
    most = most_bytes(folder)
    _check_length(name, length or 0, most)
    partial = new_partial(folder / name)
    try:
        with writing(folder / name):
            await _write(partial, name, body, most)
            return await to_thread.run_sync(_placed, partial, folder, name)
    finally:
        partial.unlink(missing_ok=True)


async def _write(partial: Path, name: str, body: AsyncIterator[bytes], most: int) -> None:
    """Writes the blocks, each in another thread, so that other requests are answered meanwhile."""
    written, waiting = 0, bytearray()
    with partial.open("xb") as file:
        async for chunk in body:
            waiting += chunk
            _check_length(name, written + len(waiting), most)
            if len(waiting) >= _BLOCK:
                written += await to_thread.run_sync(file.write, bytes(waiting))
                waiting.clear()
        written += await to_thread.run_sync(file.write, bytes(waiting))
    if written == 0:
        raise InputError(f"{name}: found an empty file, expected a video")


def _check_length(name: str, length: int, most: int) -> None:
    if length > most:
        raise TooLarge(f"{name}: found more than {most} bytes, expected a smaller video, or one that is on this disk")


def _placed(partial: Path, folder: Path, name: str) -> tuple[Path, bool]:
    """Gives the file its name, or finds one with the same content; and whether it is new."""
    stem, suffix = os.path.splitext(name)
    for number in range(1, _MOST_NAMES):
        path = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        try:
            path.open("xb").close()  # reserves the name
        except FileExistsError:
            if path.is_file() and filecmp.cmp(partial, path, shallow=False):
                return path, False
            continue
        os.replace(partial, path)
        return path, True
    raise InputError(f"{name}: found {_MOST_NAMES} files of this name, expected another one")
