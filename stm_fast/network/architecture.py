"""The arguments that describe a network, in a module that does not import the network."""

from dataclasses import dataclass

# smallest and largest `STM.min_size`
MIN_SIZES = (1, 2**14)
STRIDE = 16  # pixels of a frame per pixel of a key, in each direction
# smallest and largest; the largest width is eight times the published one, and with more than 32 waves the shortest
# would be shorter than a pixel of any frame
RANGES = {"key_dim": (1, 4096), "value_dim": (1, 4096), "decoder_dim": (1, 4096), "position_waves": (0, 32)}


@dataclass(frozen=True)
class Architecture:
    """The arguments of `STM`. Networks of equal architectures can load one another's checkpoints."""

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


# the networks of the builders `stm_<name>` and of --arch
NETWORKS = {
    "resnet50": Architecture("resnet50"),
    "resnet18": Architecture("resnet18"),
    "resnet18_half": Architecture("resnet18_half", 64, 128, 64, unit_keys=True, position_waves=4),
    "lite2": Architecture("efficientnet_lite2", 96, 64, 64, shared_trunk=True),
    "lite0": Architecture("efficientnet_lite0", 96, 64, 64, shared_trunk=True),
}
