"""Pictures and masks of training data, decoded no larger than they are used."""

from functools import partial
from pathlib import Path

from stm_fast.data.raw import Bytes, Shot
from stm_fast.errors import InputError
from stm_fast.video.image_file import open_image, orientation, to_rgb, upright, upright_size


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
    with open_image(file) as picture:
        width, height = upright_size(picture)
        if (height, width) != size:
            raise InputError(f"{mask}: mask of {size[1]}x{size[0]}, expected {width}x{height} as {file.name}")
        turn = orientation(picture)
        stored = picture.size
        # of a smaller picture Pillow would choose another scale
        if min(stored) >= shrink:
            picture.draft("RGB", (stored[0] // shrink, stored[1] // shrink))
        decoded = to_rgb(picture)
        return upright(decoded.reduce(shrink) if decoded.size == stored else decoded, turn)
