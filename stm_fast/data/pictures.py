"""Pictures and masks of training data, decoded no larger than they are used."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stm_fast.data.raw import Bytes, Shot
from stm_fast.errors import InputError
from stm_fast.video.pillow import BROKEN_PICTURE, reason


def shot_of(picture: Path, ids: Bytes, mask: Path) -> Shot:
    """A shot of two files; that their sizes agree is checked when the picture is read."""
    return Shot(str(picture), ids, partial(read_picture, picture, ids.shape, mask))


def read_picture(file: Path, size: tuple[int, int], mask: Path, shrink: int = 1) -> Bytes:
    """RGB uint8 [H / s, W / s, 3], upright; s <= shrink, a power of two.

    A JPEG is decoded at the smaller size, which costs a fraction of the time.

    Args:
        size: H, W of the mask.
        mask: the file of the mask, to name where the sizes differ.

    Raises InputError: no such file, a broken one, a size other than that of its mask.
    """
    try:
        with Image.open(file) as opened:
            full = opened.size
            opened.draft("RGB", (full[0] // shrink, full[1] // shrink))
            upright = ImageOps.exif_transpose(opened)
            if shrink > 1 and opened.size == full:
                upright = upright.reduce(shrink)
            image = np.array(upright.convert("RGB"))  # [H / s, W / s, 3]
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such picture") from error
    except BROKEN_PICTURE as error:
        raise InputError(f"{file}: picture cannot be decoded ({reason(error)})") from error
    turned = (image.shape[1] > image.shape[0]) != (full[0] > full[1])
    width, height = full[::-1] if turned else full
    if (height, width) != size:
        raise InputError(f"{mask}: mask of {size[1]}x{size[0]}, expected {width}x{height} as {file.name}")
    return image
