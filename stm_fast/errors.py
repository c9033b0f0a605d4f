"""What a user did wrong, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input of a user: a file, an option, a mask.

    The message is one line that names the file or argument, what was found and what was expected. The command line
    prints it and exits with code 2; nothing else of the package is caught there.
    """


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the system's errors inside the block, such as no permission, into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
