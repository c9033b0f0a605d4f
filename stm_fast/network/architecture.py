"""The arguments that describe a network, without importing it."""

from dataclasses import dataclass

STRIDE = 16  # pixels of a frame per pixel of a key, in each direction
# least and most: eight times the published width, and where a wave is shorter than the pixels of any frame
RANGES = {"key_dim": (1, 4096), "value_dim": (1, 4096), "decoder_dim": (1, 4096), "position_waves": (0, 32)}


@dataclass(frozen=True)
class Architecture:
    """The arguments of `STM`: equal architectures have interchangeable checkpoints."""

    backbone: str = "resnet50"
    key_dim: int = 128
    value_dim: int = 512
    decoder_dim: int = 256
    unit_keys: bool = False
    position_waves: int = 0
    shared_trunk: bool = False

    def __str__(self) -> str:
        return (
            f"STM with {self.backbone}, key_dim={self.key_dim}, value_dim={self.value_dim}, "
            f"decoder_dim={self.decoder_dim}"
            + (", unit_keys" if self.unit_keys else "")
            + (f", position_waves={self.position_waves}" if self.position_waves else "")
            + (", shared_trunk" if self.shared_trunk else "")
        )


# what the builders `stm_<name>` make, and --arch of the command line
NETWORKS = {
    "resnet50": Architecture("resnet50"),
    "resnet18": Architecture("resnet18"),
    "resnet18_half": Architecture("resnet18_half", 64, 128, 64, unit_keys=True, position_waves=4),
    "lite2": Architecture("efficientnet_lite2", 96, 64, 64, shared_trunk=True),
    "lite0": Architecture("efficientnet_lite0", 96, 64, 64, shared_trunk=True),
}
