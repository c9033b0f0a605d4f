"""What a user did wrong, in one line."""

import math
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# bytes of a part of a path, in all usual file systems
_LONGEST_NAME = 255


class InputError(ValueError):
    """Bad input of a user: a file, an option, a mask.

    The message is one line that names the file or argument, what was found and what was expected. The command line
    prints it and exits with code 2; nothing else of the package is caught there.
    """

    def __init__(self, message: str) -> None:
        # names of files may hold line breaks
        super().__init__(" ".join(message.splitlines()))


def as_input_error(error: Exception) -> InputError | None:
    """What ended a command as bad input: an InputError, or what the system refused; None for anything else, a bug."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return InputError(": ".join([" -> ".join(names)] * bool(names) + [error.strerror or str(error) or repr(error)]))
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of Path.resolve, until Python 3.13
        return InputError(str(error))
    return None


class _Short(reprlib.Repr):
    """As Python writes values, but of long ones only so much that one can tell which is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 4

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write thousands of digits
        return repr(x) if x.bit_length() < 200 else f"a whole number of {x.bit_length()} bits"

    repr_OrderedDict = reprlib.Repr.repr_dict


_SHORT = _Short()


def shown(value: object) -> str:
    """A value from outside as a message shows it: on one line, and not much of it."""
    return " ".join(_SHORT.repr(value).split("\n"))


def shown_text(text: str) -> str:
    """Text from outside without quotation marks, where it is short and can be printed; else as `shown`."""
    return text if len(text) <= _SHORT.maxstring and text.isprintable() else shown(text)


def check_name(name: str, what: str) -> str:
    """A name that comes from outside and becomes a part of a path.

    Raises InputError, which begins with `what`, where it would lead elsewhere (empty, "..", with a slash), is hidden,
    as what a killed process left is, or is none that a file can have.
    """
    if not name or name[0] == "." or "\0" in name or Path(name).name != name or _length(name) > _LONGEST_NAME:
        expected = f"the name of a folder, without slashes or a dot before it, of at most {_LONGEST_NAME} bytes"
        raise InputError(f"{what}: found {shown(name)}, expected {expected}")
    return name


def _length(name: str) -> float:
    """In bytes, as the system counts; without end where it cannot be written."""
    try:
        return len(os.fsencode(name))
    except UnicodeEncodeError:
        return math.inf


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the system's errors inside the block, such as no permission, into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def require_present(path: Path, what: str) -> None:
    """Raises InputError where there is nothing at `path`, which should be `what`."""
    with reading(path):
        if not path.exists():
            raise InputError(f"{path}: no such {what}")


def require_file(path: Path, expected: str) -> None:
    """Raises InputError where there is no file at `path`; `expected` says what it should be."""
    with reading(path):
        if not path.is_file():
            raise InputError(f"{path}: no such file, expected {expected}")


def require_folder(path: Path, what: str) -> None:
    """Raises InputError where there is no folder at `path`; `what` says what it is for, as in "of pictures"."""
    with reading(path):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder {what}")
