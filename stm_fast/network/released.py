"""The weights that come with the package; `weights/README.md` there is their model card."""

from pathlib import Path

from stm_fast.network.architecture import NETWORKS

DEFAULT, OPEN = "default", "open"
ARCHITECTURE = NETWORKS["lite2"]
# frames whose shorter side has fewer pixels are upscaled to it: see the scores in the model card
MIN_SIZE = 480
_FOLDER = Path(__file__).resolve().parents[1] / "weights"
FILES = {DEFAULT: _FOLDER / "stm_lite2.safetensors", OPEN: _FOLDER / "stm_lite2_open.safetensors"}
FILE = FILES[DEFAULT]


def weights_file(weights: str | Path) -> Path:
    """The file that `weights` names: "default" and "open" (trained without DAVIS) are those of the package."""
    return FILES.get(str(weights), Path(weights))
