"""Output for people. File names may come from anyone, so nothing in them may control the terminal."""

import io
import os
import re
import sys
from contextlib import suppress
from typing import BinaryIO, TextIO

# control characters, such as line breaks and escape sequences, and characters that change the writing direction
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

_lost: list[OSError] = []  # errors while writing to stdout
_reserved: list[int] = []  # a descriptor of stdout


def printable(text: str) -> str:
    """The text as one line, with control characters as backslash escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def percent(share: float) -> str:
    """A share from 0 to 1, as papers print J and F."""
    return f"{100 * share:.1f}"


def say(*lines: str) -> None:
    """Prints results on stdout; a failing stdout does not stop the work."""
    _print(sys.stdout, lines)


def remark(*lines: str) -> None:
    """Prints anything but results, on stderr."""
    _print(sys.stderr, lines)


def warn(message: str) -> None:
    """Prints one line with an error or a warning, on stderr."""
    # a library's message may have several lines
    remark(f"stm-fast: {' '.join(message.splitlines())}")


def open_streams() -> None:
    """Makes the standard streams accept any text, and reopens closed ones.

    Otherwise the next file opened would get the descriptor of a closed stream, and libraries would print into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def reserve_stdout() -> None:
    """From now on, stdout is only for `stdout_for_data`; what is printed, also by libraries, goes to stderr."""
    sys.stdout.flush()
    _reserved.append(os.dup(1))
    os.dup2(2, 1)


def stdout_for_data() -> BinaryIO:
    """Standard output for bytes: as it was before `reserve_stdout`, if that was called."""
    return os.fdopen(_reserved.pop() if _reserved else os.dup(1), "wb")


def all_printed() -> bool:
    """Whether everything was written to stdout, or its reader closed it."""
    _print(sys.stdout, ())
    return not _lost


def _print(stream: TextIO, lines: tuple[str, ...]) -> None:
    try:
        for line in lines:
            print(printable(line), file=stream)
        stream.flush()
    except OSError as error:
        _silence(stream)
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            _lost.append(error)
            warn(f"cannot write to stdout: {error.strerror}")


def _silence(stream: TextIO) -> None:
    """Discards, without an error, what is printed to the stream from now on and what is buffered."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
