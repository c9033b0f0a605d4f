"""Masks as the pages of one TIFF, as biologists' programs write label stacks."""

import weakref
from contextlib import ExitStack
from pathlib import Path

from stm_fast.video.image_file import decoding, open_image, page_count, turn_to
from stm_fast.video.mask_image import MaskImage, mask_of_image


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
            self.count = page_count(self._image)
            weakref.finalize(self, stack.pop_all().close)

    def read(self, page: int, size: tuple[int, int] | None = None) -> MaskImage:
        """A page, counted from 0, as `read_mask` reads a file. Raises InputError as it does."""
        with decoding(self._file, "mask"):
            turn_to(self._image, page)
            return mask_of_image(f"{self._file}: page {page}", self._image, size)
