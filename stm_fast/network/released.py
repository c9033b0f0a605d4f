"""The weights that come with the package; `weights/README.md` there is their model card."""

from pathlib import Path

from stm_fast.network.architecture import Architecture

DEFAULT = "default"
ARCHITECTURE = Architecture("efficientnet_lite2", key_dim=96, value_dim=64, decoder_dim=64, shared_trunk=True)
# frames with a shorter side of fewer pixels want to be made that large: see the scores in the model card
MIN_SIZE = 480
FILE = Path(__file__).resolve().parents[1] / "weights" / "stm_lite2.safetensors"


def weights_file(weights: str | Path) -> Path:
    """The file that `weights` names: "default" is that of the package."""
    return FILE if str(weights) == DEFAULT else Path(weights)
