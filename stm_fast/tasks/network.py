"""Loads the network that a command runs."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from stm_fast.errors import InputError, option
from stm_fast.heap import weights_mapped
from stm_fast.network import STM, save_checkpoint
from stm_fast.network.architecture import NETWORKS
from stm_fast.network.checkpoint import load_network
from stm_fast.network.deploy import for_inference
from stm_fast.network.deploy.precision import choose_dtype
from stm_fast.network.mean import into_mean
from stm_fast.printing import say
from stm_fast.progress import waiting
from stm_fast.runs.ranks import launched
from stm_fast.tasks.choice import NetworkChoice

_log = logging.getLogger(__name__)


@waiting("loading the network")
@weights_mapped()
def load_model(choice: NetworkChoice) -> STM:
    """The network on its device. Raises InputError if it cannot be loaded or the device does not exist."""
    device = _device(choice.device)
    if choice.arch is not None:
        torch.manual_seed(0)
        model = STM(**asdict(NETWORKS[choice.arch]))
    else:
        model = load_network(choice.file)
    return model.to(device).eval()


def load_for_inference(choice: NetworkChoice) -> STM:
    """The network, prepared for inference."""
    return prepare(load_model(choice), choice)


@waiting("loading the network")
@weights_mapped()
def prepare(model: STM, choice: NetworkChoice) -> STM:
    """Prepares a network for inference."""
    device = next(model.parameters()).device
    dtype = choose_dtype(choice.dtype, device)
    _log.info("network: %s, on %s in %s", model.architecture, device, str(dtype).removeprefix("torch."))
    return for_inference(model, dtype=dtype, compile=choice.compile)


def convert_checkpoints(sources: Sequence[NetworkChoice], target: Path, *, half: bool) -> None:
    """stm-fast convert: writes the mean of the sources' weights as safetensors.

    Raises:
        InputError: invalid checkpoints, checkpoints of different networks, or a file that cannot be written.
    """
    model = into_mean([load_model(source) for source in sources])
    save_checkpoint(model, target, half=half)
    say(f"{target}: {model.architecture}")


def _device(name: str) -> torch.device:
    count = torch.cuda.device_count()
    if name == "auto":
        # a device for each of the processes that torchrun starts on this machine
        index = launched().local_rank
        return torch.device("cuda", index % count) if count else torch.device("cpu")
    _, _, number = name.partition(":")
    if name != "cpu" and int(number or 0) >= count:
        raise InputError(f"{option('device')}: found {name!r}, but this machine has {count} CUDA devices")
    return torch.device(name)
