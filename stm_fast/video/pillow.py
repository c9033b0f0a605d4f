"""What Pillow raises for a broken file, and how to say it."""

from PIL import Image, UnidentifiedImageError

BROKEN_PICTURE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def reason(error: BaseException) -> str:
    """Why a picture cannot be read, in one line and without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "no known picture format"
    return " ".join(str(error).split()) or type(error).__name__
