"""Writers of results with a file for each frame: masks, overlay images, cut-outs, soft masks."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.system import sync
from stm_fast.video.masks import write_mask
from stm_fast.whole_file import make_folder, whole_file, writing

JPEG_QUALITY = 90
# of zlib: the default, 6, takes three times as long, for files that are 10 % smaller
PNG_LEVEL = 1


class FileWriter:
    """One file per frame, written completely or not at all. Raises InputError if the folder cannot be created."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._not_synced: list[Path] = []
        make_folder(self.folder)

    def sync(self) -> None:
        """Waits until everything written is on disk and would survive a power failure."""
        for path in (*self._not_synced, self.folder):
            with writing(path):
                sync(path)
        self._not_synced.clear()

    def _path(self, name: str) -> Path:
        self._not_synced.append(self.folder / name)
        return self._not_synced[-1]


class MaskWriter(FileWriter):
    """Writes `folder/<name>.png`; `palette` as in `write_mask`."""

    def __init__(self, folder: str | Path, palette: bytes | None = None) -> None:
        super().__init__(folder)
        self.palette = palette

    def write(self, name: str, ids: npt.NDArray[np.uint8]) -> None:
        """Writes the mask [H, W] uint8 of one frame."""
        write_mask(self._path(f"{name}.png"), ids, self.palette)


class OverlayImageWriter(FileWriter):
    """Writes `folder/<name>.jpg`."""

    def write(self, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Writes the image uint8 [H, W, 3] RGB of one frame."""
        with whole_file(self._path(f"{name}.jpg")) as partial:
            Image.fromarray(image).save(partial, format="JPEG", quality=JPEG_QUALITY)


class CutoutWriter(FileWriter):
    """Writes `folder/<name>.png` with straight (not premultiplied) alpha; invisible pixels are black."""

    def write(self, name: str, image: npt.NDArray[np.uint8], matte: npt.NDArray[np.uint8]) -> None:
        """Writes the pixels of one frame that its matte shows.

        Args:
            name: of the frame.
            image: uint8 [H, W, 3] RGB.
            matte: uint8 [H, W], the alpha channel: 255 is opaque.
        """
        cutout = np.dstack((image, matte))  # [H, W, 4]
        cutout[matte == 0] = 0
        with whole_file(self._path(f"{name}.png")) as partial:
            Image.fromarray(cutout).save(partial, format="PNG", compress_level=PNG_LEVEL)


class SoftMaskWriter(FileWriter):
    """Writes `folder/<name>.<object>.png`: 16-bit grayscale, 65535 times the probability."""

    def write(self, name: str, object_id: int, prob: npt.NDArray[np.float32]) -> None:
        """Writes the probabilities [H, W], in [0, 1], of one object in one frame."""
        levels = np.rint(prob * np.iinfo(np.uint16).max).astype(np.uint16)
        with whole_file(self._path(f"{name}.{object_id}.png")) as partial:
            Image.fromarray(levels).save(partial, format="PNG", compress_level=PNG_LEVEL)
