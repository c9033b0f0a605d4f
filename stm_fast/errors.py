"""User errors, each reported in one line."""

import math
import os
import re
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

# in bytes, in all common file systems
_MAX_NAME = 255
# an option in a message, between null characters, which neither a path nor a command's argument can contain
_OPTION = re.compile("\0([a-z_]+)(?:=([^\0]*))?\0")


def option(name: str, *value: object) -> str:
    """An option in the text of a `Message`, as ``max_size`` or ``max_frames=7``; commands show the flag instead."""
    shown_value = "".join(f"={one!r}" if isinstance(one, str) else f"={one}" for one in value)
    return f"\0{name}{shown_value}\0"


class Message(str):
    """One line for the user, in which each `option` is marked. The marks are not part of the string."""

    marked: str

    def __new__(cls, text: str) -> Self:
        # file names may contain line breaks
        marked = text.marked if isinstance(text, Message) else " ".join(text.splitlines())
        message = super().__new__(cls, _OPTION.sub(lambda found: found[0].strip("\0"), marked))
        message.marked = marked
        return message

    def with_options(self, named: Callable[[str, str | None], str]) -> str:
        """The line with each option replaced by `named(name, value)`."""
        return _OPTION.sub(lambda found: named(found[1], found[2]), self.marked)


class InputError(ValueError):
    """Bad input from the user: a file, an option, a mask.

    The message is one line that names the file or `option`, what was found and what was expected. The command line
    prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        self.message = Message(message)
        super().__init__(self.message)


def as_input_error(error: Exception) -> InputError | None:
    """The error as an InputError if it is one or is of the operating system; None for anything else, which is a bug."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return InputError(": ".join([" -> ".join(names)] * bool(names) + [error.strerror or str(error) or repr(error)]))
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # Path.resolve, before Python 3.13
        return InputError(str(error))
    return None


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Turns exceptions of a library, of any type for damaged or hostile files, into an InputError with this message."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{message} ({reason_of(error)})") from error


class _Short(reprlib.Repr):
    """Like repr(), but long values are shortened."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 4

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print thousands of digits
        return repr(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"

    repr_OrderedDict = reprlib.Repr.repr_dict


_SHORT = _Short()


def shown(value: object) -> str:
    """An external value for a message: on one line, and shortened."""
    return " ".join(_SHORT.repr(value).split("\n"))


def shown_text(text: str) -> str:
    """External text for a message: without quotation marks if it is short and printable, otherwise as `shown`."""
    return text if len(text) <= _SHORT.maxstring and text.isprintable() else shown(text)


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: the system's message, without file names, or that of the exception."""
    message = getattr(error, "strerror", None) or str(error)
    return " ".join(message.split()) or type(error).__name__


def check_name(name: str, what: str) -> str:
    """Returns an external name that becomes a path component.

    Raises InputError, which starts with `what`, if the name would lead elsewhere (empty, "..", with a slash), is
    hidden, like the files left by a killed process, or is not a valid file name.
    """
    if not name or name[0] == "." or "\0" in name or Path(name).name != name or _length(name) > _MAX_NAME:
        expected = f"the name of a folder, without slashes or a leading dot, of at most {_MAX_NAME} bytes"
        raise InputError(f"{what}: found {shown(name)}, expected {expected}")
    return name


def _length(name: str) -> float:
    """In bytes; infinite if it cannot be encoded."""
    try:
        return len(os.fsencode(name))
    except UnicodeEncodeError:
        return math.inf


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns system errors inside the block, such as missing permission, into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def require_present(path: Path, what: str) -> None:
    """Raises InputError if nothing exists at `path`, which should be `what`."""
    with reading(path):
        if not path.exists():
            raise InputError(f"{path}: no such {what}")


def require_file(path: Path, expected: str) -> None:
    """Raises InputError if there is no file at `path`; `expected` says what it should be."""
    with reading(path):
        if not path.is_file():
            raise InputError(f"{path}: no such file, expected {expected}")


def require_folder(path: Path, what: str) -> None:
    """Raises InputError if there is no folder at `path`; `what` describes its content, as in "of images"."""
    with reading(path):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder {what}")
