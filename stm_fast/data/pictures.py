"""Pictures and masks of training data, decoded no larger than they are used."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from stm_fast.data.raw import Bytes, Shot
from stm_fast.errors import InputError
from stm_fast.video.pillow import check_depth, decoding

_QUARTER_TURNS = range(5, 9)


def shot_of(picture: Path, ids: Bytes, mask: Path) -> Shot:
    """A shot of two files; that their sizes agree is checked when the picture is read."""
    return Shot(str(picture), ids, partial(read_picture, picture, ids.shape, mask))


def read_picture(file: Path, size: tuple[int, int], mask: Path, shrink: int) -> Bytes:
    """RGB uint8 [H / shrink, W / shrink, 3], rounded up; EXIF orientation is applied.

    A JPEG is decoded at the smaller size, which costs a fraction of the time.

    Args:
        size: H, W of the mask.
        mask: the file of the mask, to name where the sizes differ.
        shrink: 1, 2, 4 or 8.

    Raises InputError: no such file, a broken one, more than 8 bits a channel, a size other than that of its mask.
    """
    with decoding(file, "picture"), Image.open(file) as opened:
        width, height = opened.size
        opened.draft("RGB", (max(1, width // shrink), max(1, height // shrink)))
        check_depth(opened, file)
        decoded = opened.convert("RGB")
        if opened.size == (width, height):
            decoded = decoded.reduce(shrink)
        turn = opened.getexif().get(ExifTags.Base.Orientation, 1)
        image = np.array(ImageOps.exif_transpose(decoded) if turn != 1 else decoded)  # [H / shrink, W / shrink, 3]
    full = (width, height) if turn in _QUARTER_TURNS else (height, width)
    if full != size:
        raise InputError(f"{mask}: mask of {size[1]}x{size[0]}, expected {full[1]}x{full[0]} as {file.name}")
    return image
