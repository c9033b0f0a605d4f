"""Pictures that Pillow opens: upright, RGB, and refused in one line where they are broken or would be spoiled."""

import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from stm_fast.errors import InputError

# by content, whatever the name says; Pillow starts another program for some of the others
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
# more than 8 bits a channel, of which a conversion to RGB makes white
_DEEP_MODES = ("I", "F")

UPRIGHT = 1
# what turns a picture of each EXIF orientation upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = frozenset({5, 6, 7, 8})
_ORIENTATION = 0x0112
# SHORT, as the standard says, LONG, and both signed
_INTEGERS = {3: "H", 4: "I", 8: "h", 9: "i"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]")

# Python's filters of warnings belong to the process, and no process may start while they are changed
_filters = Lock()
os.register_at_fork(before=_filters.acquire, after_in_parent=_filters.release, after_in_child=_filters.release)


@contextmanager
def _decoding(file: Path, what: str) -> Iterator[None]:
    """Turns what Pillow raises inside the block into an InputError that names the file."""
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


@contextmanager
def opened(file: Path, what: str = "picture") -> Iterator[Image.Image]:
    """A picture whose header was read, and whose pixels were not.

    Args:
        what: the file should be, as in "picture".

    Raises InputError: no such file, a broken one, more than 8 bits a channel, more pixels than Pillow allows (about
    180 million). So does the block for what Pillow raises there.
    """
    with _decoding(file, what):
        # warnings are of large pictures, whose size is checked, and of damaged EXIF data, which is not needed
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(file, formats=_FORMATS)
        with picture:
            if picture.mode.startswith(_DEEP_MODES):
                raise InputError(f"{file}: {what} of mode {picture.mode}, expected 8 bits a channel")
            yield picture


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8, from its header; 1 (upright) where there is none or it is in doubt.

    Not in doubt is one number of 16 or 32 bits; where EXIF data have no orientation, XMP data are asked, as by Pillow.
    """
    # Pillow turns it itself
    if picture.format == "TIFF":
        return UPRIGHT
    found = _exif_orientation(_exif(picture))
    if found is None:
        found = _xmp_orientation(picture)
    return found if found in _TURNS else UPRIGHT


def seen_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture once it is upright."""
    width, height = picture.size
    return (height, width) if orientation(picture) in _QUARTER_TURNS else (width, height)


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture as RGB, not turned; what is transparent keeps its colour."""
    # Pillow warns of it in a palette, though it is dropped
    picture.info.pop("transparency", None)
    return picture.convert("RGB")


def upright(picture: Image.Image, turn: int) -> npt.NDArray[np.uint8]:
    """Pixels [H, W, ...] of a decoded picture of this orientation."""
    return np.array(picture.transpose(_TURNS[turn]) if turn in _TURNS else picture)


def _exif(picture: Image.Image) -> bytes:
    stored = picture.info.get("exif")
    if stored is None:
        # as ImageMagick writes it into PNG: name, length, hexadecimal digits
        lines = str(picture.info.get("Raw profile type exif", "")).split("\n")
        try:
            stored = bytes.fromhex("".join(lines[3:]))
        except ValueError:
            return b""
    return bytes(stored).removeprefix(b"Exif\0\0")


def _exif_orientation(exif: bytes) -> int | None:
    """None where the first directory of EXIF data (TIFF 6.0, section 2) has no orientation; 0 where it is in doubt."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    found = None
    try:
        if order is not None:
            (directory,) = struct.unpack_from(f"{order}I", exif, 4)
            (entries,) = struct.unpack_from(f"{order}H", exif, directory)
            for at in range(directory + 2, directory + 2 + 12 * entries, 12):
                tag, kind, count = struct.unpack_from(f"{order}HHI", exif, at)
                if tag == _ORIENTATION:
                    (value,) = struct.unpack_from(order + _INTEGERS.get(kind, "H"), exif, at + 8)
                    found = value if kind in _INTEGERS and count == 1 else 0
    except struct.error:
        pass  # cut off
    return found


def _xmp_orientation(picture: Image.Image) -> int | None:
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
    return None if match is None else int(match[1])
