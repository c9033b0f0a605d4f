"""The weights of the click network: those of the package, files of others, and a trunk from ImageNet."""

from pathlib import Path

import torch
from torch import nn

from stm_fast.clicks.network import ClickNetwork
from stm_fast.errors import InputError
from stm_fast.network.checkpoint import check_fit, check_numbers, state_to_write
from stm_fast.network.efficientnet import from_published
from stm_fast.network.entries import read_entries
from stm_fast.network.pretrained import pretrained_file
from stm_fast.network.released import FOLDER
from stm_fast.tensor_file import write_tensors

FILE = FOLDER / "clicks_lite2.safetensors"


def load_click_network(path: Path = FILE) -> ClickNetwork:
    """A network with the weights of a file, ready for inference, in float32 on the CPU.

    Raises:
        InputError: no such file, a damaged one, or not the weights of a click network.
    """
    entries = read_entries(path).tensors
    with torch.device("meta"):
        expected = ClickNetwork().state_dict()
    check_fit(entries, expected, path)
    check_numbers(entries, path)
    network = ClickNetwork().eval()
    network.load_state_dict(entries)
    return network.to(memory_format=torch.channels_last)


def load_trunk(network: ClickNetwork) -> None:
    """Gives a network the ImageNet weights of EfficientNet-Lite2. Raises InputError if they are not installed."""
    state = torch.load(pretrained_file("efficientnet-lite2"), weights_only=True)
    found = from_published(state, network.stages)
    missing = {name for name in network.state_dict() if name.startswith(("stem.", "stages."))} - set(found)
    if missing:
        raise InputError(f"efficientnet-lite2: found no weights for {min(missing)}, expected those of the whole trunk")
    network.load_state_dict(found, strict=False)


def write_weights(path: Path, network: nn.Module) -> None:
    """Writes weights, convolutions in float16. Raises InputError if they cannot be written."""
    write_tensors(path, state_to_write(network, half=True))
