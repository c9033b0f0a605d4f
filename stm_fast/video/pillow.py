"""What Pillow raises for a broken file, and how to say it; pictures that it would spoil."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from stm_fast.errors import InputError

_DEEP_MODES = ("I", "F")


@contextmanager
def decoding(file: Path, what: str) -> Iterator[None]:
    """Turns what Pillow raises inside the block into an InputError that names the file.

    Args:
        what: the file should be, as in "picture".
    """
    try:
        # a pipe would be waited for, and a device read to its end
        if not file.is_file() and file.exists():
            raise InputError(f"{file}: not a regular file, expected a {what}")
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such {what}") from error
    # what a damaged or hostile file makes Pillow raise is open-ended
    except Exception as error:
        raise InputError(f"{file}: not a readable {what} ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """Why a picture cannot be read, in one line and without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "no known picture format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def check_depth(picture: Image.Image, file: Path) -> None:
    """Raises InputError for more than 8 bits a channel, of which a conversion to RGB makes white."""
    if picture.mode.startswith(_DEEP_MODES):
        raise InputError(f"{file}: picture of mode {picture.mode}, expected 8 bits a channel")
