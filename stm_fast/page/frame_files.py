"""The files of a project that belong to one frame each: given masks, all masks, probabilities.

H x W pixels.
"""

import io
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stm_fast.errors import InputError, reading
from stm_fast.system import sync
from stm_fast.video.image_file import open_image
from stm_fast.video.masks import EXACT, palette_image
from stm_fast.video.writer import PNG_LEVEL
from stm_fast.whole_file import make_folder, refuse_links, remove_left_over, whole_file, writing

Plane = npt.NDArray[np.uint8]  # [H, W]

_MOST_BYTES = 2**28  # of a PNG
GIVEN, MASKS, SOFT = "given", "masks", ".soft"

logger = logging.getLogger(__name__)


class FrameFiles:
    """Reads and writes them; each is whole or absent.

    Args:
        folder: of the project. Its subfolders are made, and partial files of killed processes removed.
        width, height: of the frames.

    Raises:
        InputError: a subfolder is a symbolic link, or cannot be used.
    """

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self.given, self.masks, self.soft = folder / GIVEN, folder / MASKS, folder / SOFT
        self._size = (width, height)
        parts = (self.given, self.masks, self.soft)
        refuse_links(*parts)
        remove_left_over(folder)
        for part in parts:
            make_folder(part)
            if any(name.endswith(".partial") for name in names_in(part)):
                remove_left_over(part)

    def plane(self, path: Path) -> Plane | None:
        """The values of a PNG of 8 bits, [H, W]; None if there is none. Raises InputError for anything else."""
        if not path.exists():
            return None
        with open_image(path, "mask") as image:
            found = f"{image.format} of mode {image.mode} and {image.size[0]}x{image.size[1]}"
            if image.format != "PNG" or image.mode not in ("P", "L") or image.size != self._size:
                raise InputError(f"{path}: found {found}, expected a PNG of ids of {self._size[0]}x{self._size[1]}")
            return np.array(image, np.uint8)

    def found_plane(self, path: Path) -> Plane | None:
        """`plane` of what was found; for a damaged file, as a power failure leaves it, also None, with a note."""
        try:
            return self.plane(path)
        except InputError as error:
            logger.warning("%s; it is left out, track the frame again", error)
            return None

    def soft_path(self, name: str, object_id: int) -> Path:
        """Of the probabilities of one object in the frame with this name."""
        return self.soft / f"{name}.{object_id}.png"

    def write_soft(self, name: str, object_id: int, prob: npt.NDArray[np.float32] | None) -> None:
        """Writes probabilities [H, W] in [0, 1], in 255ths; None removes them."""
        levels = None if prob is None else np.rint(prob.clip(0, 1) * 255).astype(np.uint8)
        file = None if levels is None else _png(Image.fromarray(levels), compress_level=PNG_LEVEL)
        put(self.soft_path(name, object_id), file)


def ids_png(ids: Plane, palette: bytes) -> bytes:
    """A PNG of object ids [H, W], as `write_mask` writes it, which says that it holds ids."""
    exact = PngInfo()
    exact.add_text(*EXACT)
    return _png(palette_image(ids, palette), pnginfo=exact)


def content(path: Path) -> bytes | None:
    """What is in a file; None if it does not exist. Raises InputError for a pipe, a device or an impossible size."""
    with reading(path):
        if not path.exists():
            return None
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: found something else, expected a PNG of {_MOST_BYTES} bytes at most")
        return path.read_bytes()


def put(path: Path, data: bytes | None, *, durable: bool = False) -> None:
    """Replaces a file, or removes it if there is no content. Raises InputError if that fails.

    Args:
        durable: waits until this is on disk, so that it survives a power failure.
    """
    if data is None:
        with writing(path):
            path.unlink(missing_ok=True)
            if durable:
                sync(path.parent)
    else:
        with whole_file(path, durable=durable) as partial:
            partial.write_bytes(data)


def names_in(folder: Path) -> Iterable[str]:
    """The names in a folder. Raises InputError if it cannot be read."""
    with reading(folder), os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()
