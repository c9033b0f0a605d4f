"""Images opened by Pillow: upright, RGB, and refused in one line if damaged or not convertible without loss."""

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

from stm_fast.errors import InputError, reason_of

# detected by content, not by name; for some other formats Pillow starts an external program
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
# TIFF 6.0, section 2, and BigTIFF, in little-endian and big-endian order
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# more than 8 bits per channel: a conversion to RGB would clip them to white
_DEEP_MODES = ("I", "F")

UPRIGHT = 1
# turns an image with each EXIF orientation upright
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
# SHORT, as the standard says, LONG, and the signed types of both
_INTEGERS = {3: "H", 4: "I", 8: "h", 9: "i"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]")

# Python's warning filters are global to the process; a fork must not copy them while they are changed
_filters = Lock()
if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(before=_filters.acquire, after_in_parent=_filters.release, after_in_child=_filters.release)


@contextmanager
def decoding(file: Path, what: str) -> Iterator[None]:
    """Turns exceptions raised by Pillow inside the block into an InputError that names the file."""
    try:
        # a pipe would block, and a device would be read without end
        if not file.is_file() and file.exists():
            raise InputError(f"{file}: not a regular file, expected a {what}")
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such {what}") from error
    # damaged and hostile files make Pillow raise exceptions of any type
    except Exception as error:
        why = "unknown image format" if isinstance(error, UnidentifiedImageError) else reason_of(error)
        raise InputError(f"{file}: not a readable {what} ({why})") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of large images, whose size is checked, and of damaged metadata, which is not used."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def open_image(file: Path, what: str = "image", *, deep: bool = False) -> Iterator[Image.Image]:
    """An image whose header was read; its pixels are not decoded yet.

    Args:
        what: what the file should be, for messages.
        deep: accept more than 8 bits per pixel of a gray image, see `is_deep`.

    Raises:
        InputError: no such file, a damaged one, more than 8 bits per channel, or more pixels than Pillow allows (about
            180 million); also for exceptions of Pillow inside the block.
    """
    # opened here: from a path, Pillow maps files into memory, and then garbles TIFF images that lie on a side
    with decoding(file, what), file.open("rb") as content:
        with _without_warnings():
            image = Image.open(content, formats=_FORMATS)
        with image:
            if is_deep(image) and not deep:
                raise InputError(f"{file}: {what} of mode {image.mode}, expected 8 bits per channel")
            yield image


def page_count(image: Image.Image) -> int:
    """The number of images in an opened file. Raises UserWarning for a TIFF file that ends before the last of them."""
    with _without_warnings():
        warnings.filterwarnings("error", "Corrupt EXIF data")
        return int(getattr(image, "n_frames", 1))


def turn_to(image: Image.Image, page: int) -> None:
    """Makes an opened file the image of one of its pages; of that, too, only the header is read."""
    with _without_warnings():
        image.seek(page)


def is_deep(image: Image.Image) -> bool:
    """Whether an image is gray with more than 8 bits per pixel: integers or floating-point numbers."""
    return image.mode.startswith(_DEEP_MODES)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8, from its header; 1 (upright) if there is none or it is ambiguous.

    It is unambiguous if it is one number of 16 or 32 bits. If EXIF has none, XMP is consulted, as in Pillow.
    """
    # Pillow applies it itself
    if image.format == "TIFF":
        return UPRIGHT
    found = _exif_orientation(_exif(image))
    if found is None:
        found = _xmp_orientation(image)
    return found if found in _TURNS else UPRIGHT


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is upright."""
    width, height = image.size
    return (height, width) if orientation(image) in _QUARTER_TURNS else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, not turned; transparent pixels keep their color."""
    # Pillow would warn about transparency in a palette, though it is dropped
    image.info.pop("transparency", None)
    return image.convert("RGB")


def upright(image: Image.Image, turn: int) -> npt.NDArray[np.uint8]:
    """Upright pixels [H, W, ...] of a decoded image with this orientation."""
    return np.array(image.transpose(_TURNS[turn]) if turn in _TURNS else image)


def _exif(image: Image.Image) -> bytes:
    stored = image.info.get("exif")
    if stored is None:
        # as ImageMagick writes it into PNG files: name, length, hexadecimal digits
        lines = str(image.info.get("Raw profile type exif", "")).split("\n")
        try:
            stored = bytes.fromhex("".join(lines[3:]))
        except ValueError:
            return b""
    return bytes(stored).removeprefix(b"Exif\0\0")


def _exif_orientation(exif: bytes) -> int | None:
    """None if the first directory of the EXIF data (TIFF 6.0, section 2) has no orientation; 0 if it is ambiguous."""
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
        pass  # truncated
    return found


def _xmp_orientation(image: Image.Image) -> int | None:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
    return None if match is None else int(match[1])
