"""The weights of the click network: those of the package, files of others, and a trunk from ImageNet."""

from pathlib import Path

import torch
from torch import nn

from stm_fast.clicks.network import ClickNetwork
from stm_fast.errors import InputError
from stm_fast.network.efficientnet import from_published
from stm_fast.network.entries import read_entries
from stm_fast.network.pretrained import pretrained_file
from stm_fast.tensor_file import write_tensors

FILE = Path(__file__).resolve().parents[1] / "weights" / "clicks_lite2.safetensors"


def load_click_network(path: Path = FILE) -> ClickNetwork:
    """A network with the weights of a file, ready for inference, in float32 on the CPU.

    Raises:
        InputError: no such file, a damaged one, or not the weights of a click network.
    """
    entries = read_entries(path)
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in ClickNetwork().state_dict().items()}
    found = {name: tensor.shape for name, tensor in entries.tensors.items()}
    if found != expected:
        wrong = next(name for name in [*expected, *found] if found.get(name) != expected.get(name))
        raise InputError(
            f"{path}: not weights of a click network: found {wrong} {_shape(found.get(wrong))}, expected "
            f"{_shape(expected.get(wrong))}"
        )
    for name, tensor in entries.tensors.items():
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise InputError(f"{path}: found {name} of {tensor.dtype}, expected finite floating-point numbers")
    network = ClickNetwork().eval()
    network.load_state_dict(entries.tensors)
    return network.to(memory_format=torch.channels_last)


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"


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
    tensors = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    write_tensors(path, tensors)
