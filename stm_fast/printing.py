"""What is printed for people. Names of files come from anywhere: nothing in one does anything to a terminal."""

import io
import os
import re
import sys
from contextlib import suppress
from typing import TextIO

# control characters, among them line breaks and escape sequences, and what turns the direction of writing
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

_lost: list[OSError] = []  # why stdout took no more


def printable(text: str) -> str:
    """The text as one line, with backslash escapes in place of control characters."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(*lines: str) -> None:
    """Prints results, on stdout; a stdout that takes nothing stops no work."""
    _print(sys.stdout, lines)


def remark(*lines: str) -> None:
    """Prints what is no result, on stderr."""
    _print(sys.stderr, lines)


def warn(message: str) -> None:
    """Prints one line about what is wrong or doubtful, on stderr."""
    # a message of a library may have several
    remark(f"stm-fast: {' '.join(message.splitlines())}")


def open_streams() -> None:
    """Makes the standard streams fit for any text, whatever the program was started with.

    In place of one that is closed, the next file that is opened would get its number, and with it what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def all_said() -> bool:
    """Whether stdout has taken all that was printed, or whoever read it wanted no more."""
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
    """What is printed there from now on, and what waits to be, is lost without an error."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
