"""Loads the network that a command runs."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from stm_fast.heap import weights_mapped
from stm_fast.network import STM, loading, save_checkpoint
from stm_fast.network.architecture import NETWORKS
from stm_fast.network.device import choose_device
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
    # a device for each of the processes that torchrun starts on this machine
    device = choose_device(choice.device, launched().local_rank)
    if choice.arch is not None:
        torch.manual_seed(0)
        model = STM(**asdict(NETWORKS[choice.arch]))
    else:
        model = loading.load_weights(choice.weights)
    return model.to(device).eval()


def load_for_inference(choice: NetworkChoice) -> STM:
    """The network, prepared for inference."""
    return prepare(load_model(choice), choice)


@waiting("loading the network")
@weights_mapped()
def prepare(model: STM, choice: NetworkChoice) -> STM:
    """Prepares a network for inference."""
    prepared = loading.prepare(model, choice.dtype, choice.compile)
    weight = next(prepared.parameters())
    _log.info("network: %s, on %s in %s", model.architecture, weight.device, str(weight.dtype).removeprefix("torch."))
    return prepared


def convert_checkpoints(sources: Sequence[NetworkChoice], target: Path, *, half: bool) -> None:
    """stm-fast convert: writes the mean of the sources' weights as safetensors.

    Raises:
        InputError: invalid checkpoints, checkpoints of different networks, or a file that cannot be written.
    """
    model = into_mean([load_model(source) for source in sources])
    save_checkpoint(model, target, half=half)
    say(f"{target}: {model.architecture}")
