"""The weights that come with the package; their model card is `weights/README.md`."""

from pathlib import Path

from stm_fast.network.architecture import NETWORKS

DEFAULT, OPEN = "default", "open"
ARCHITECTURE = NETWORKS["lite2"]
# frames whose shorter side is below this are upscaled; the model card has scores
MIN_SIZE = 480
FOLDER = Path(__file__).resolve().parents[1] / "weights"
FILES = {DEFAULT: FOLDER / "stm_lite2.safetensors", OPEN: FOLDER / "stm_lite2_open.safetensors"}
FILE = FILES[DEFAULT]
# for the records of files made from them; the model card says more
LICENSES = {
    DEFAULT: "cc-by-nc-4.0: for non-commercial use",
    OPEN: "apache-2.0; trained on images with licenses of their own, many of them non-commercial: see the model card",
}


def weights_file(weights: str | Path) -> Path:
    """The file of `weights`: "default", "open" (trained without DAVIS), or a path."""
    return FILES.get(str(weights), Path(weights))
