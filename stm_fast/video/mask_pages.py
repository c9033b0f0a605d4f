"""Masks as the pages of one TIFF, as biologists' programs write label stacks."""

import weakref
from contextlib import ExitStack
from pathlib import Path

from stm_fast.video.image_file import decoding, open_image
from stm_fast.video.mask_image import MaskImage, mask_of_image

# little and big endian, classic and BigTIFF
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class MaskPages:
    """The pages of a TIFF. The file stays open while this exists, because a page is found only through those before it.

    Raises InputError if the file cannot be read.

    Attributes:
        count: the number of pages.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with ExitStack() as stack:
            self._image = stack.enter_context(open_image(file, "mask", deep=True))
            self.count: int = getattr(self._image, "n_frames", 1)
            weakref.finalize(self, stack.pop_all().close)

    def read(self, page: int, size: tuple[int, int] | None = None) -> MaskImage:
        """A page, counted from 0, as `read_mask` reads a file. Raises InputError as it does."""
        with decoding(self._file, "mask"):
            self._image.seek(page)
            return mask_of_image(f"{self._file}: page {page}", self._image, size)
