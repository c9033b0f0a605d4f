"""What Pillow raises for a broken file, and how to say it; pictures that it would spoil."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from stm_fast.errors import InputError

_DEEP_MODES = ("I", "F")
BROKEN_PICTURE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def reason(error: BaseException) -> str:
    """Why a picture cannot be read, in one line and without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "no known picture format"
    return " ".join(str(error).split()) or type(error).__name__


def check_depth(picture: Image.Image, file: Path) -> None:
    """Raises InputError for more than 8 bits a channel, of which a conversion to RGB makes white."""
    if picture.mode.startswith(_DEEP_MODES):
        raise InputError(f"{file}: picture of mode {picture.mode}, expected 8 bits a channel")
