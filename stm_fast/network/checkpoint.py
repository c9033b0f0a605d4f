"""Weights in and out of files: the published checkpoint, our own safetensors, torchvision's trunks."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from stm_fast.errors import InputError, require_file
from stm_fast.network.architecture import Architecture
from stm_fast.network.efficientnet import EfficientNetLite, from_published
from stm_fast.network.encoders import BACKBONES
from stm_fast.network.key_value import KeyValue
from stm_fast.network.pretrained import PRETRAINED, pretrained_file
from stm_fast.network.shared_trunk import CELLS, PLACE_CHANNELS
from stm_fast.network.stm import STM
from stm_fast.tensor_file import write_tensors

if TYPE_CHECKING:
    from torchvision.models import ResNet18_Weights, ResNet50_Weights

FORMAT = "stm_fast"
MOST_PROBLEMS = 10  # how many of a checkpoint's faults a message names before it counts
WRAPPERS = ("state_dict", "network", "model")  # where training scripts keep the weights inside a checkpoint

# the parts of a published name that are called differently here; all other parts are the same
PUBLISHED_TO_OURS = {
    "Encoder_M": "memory_encoder",
    "Encoder_Q": "query_encoder",
    "KV_M_r4": "memory_key_value",
    "KV_Q_r4": "query_key_value",
    "Decoder": "decoder",
    "conv1_m": "conv1_mask",
    "conv1_o": "conv1_others",
    "res2": "layer1",
    "res3": "layer2",
    "res4": "layer3",
    "Key": "key",
    "Value": "value",
    "convFM": "compress",
    "ResMM": "merged_block",
    "RF3": "refine3",
    "RF2": "refine2",
    "convFS": "skip_conv",
    "ResFS": "skip_block",
    "pred2": "predict",
}
OURS_TO_PUBLISHED = {ours: published for published, ours in PUBLISHED_TO_OURS.items()}


def our_name(name: str) -> str:
    """The state-dict entry of `STM` that a published entry is called here; our own names stay."""
    return ".".join(PUBLISHED_TO_OURS.get(part, part) for part in name.split("."))


def published_name(name: str) -> str:
    """The entry of the published checkpoint that holds a state-dict entry of `STM`."""
    return ".".join(OURS_TO_PUBLISHED.get(part, part) for part in name.split("."))


def load_checkpoint(model: STM, path: str | Path) -> None:
    """Loads all weights of a network, in place.

    Args:
        model: the network; its device and dtype stay.
        path: `.safetensors` as `save_checkpoint` writes it, or a PyTorch checkpoint with the names of the published STM
            or ours, with or without the prefix `module.`, on its own or under a key of `WRAPPERS`.

    Raises:
        InputError: no such file, not a checkpoint of tensors, another architecture, or entries that are missing,
            unexpected or of another shape; the model is then as it was.
    """
    found = read_state_dict(path)
    state = {our_name(name): tensor for name, tensor in found.items()}
    architecture = _recognise(state)
    if architecture is not None and architecture != model.architecture:
        raise InputError(f"{path}: found the weights of {architecture}, expected {model.architecture}")
    name_in_file = our_name if state.keys() == found.keys() else published_name
    expected = {name_in_file(name): tensor for name, tensor in model.state_dict().items()}
    _check_fit(found, expected, path)
    model.load_state_dict(state)


def load_start(model: STM, path: str | Path) -> None:
    """Loads weights to train on, in place: those of the same network, or of the same one without position waves.

    Position waves that the file does not have keep their strength, and add to scores that are what they were.

    Raises:
        InputError: as `load_checkpoint` does.
    """
    found, without_waves = architecture_of(path), dataclasses.replace(model.architecture, position_waves=0)
    if found == model.architecture or found != without_waves:
        load_checkpoint(model, path)
        return
    start = STM(**dataclasses.asdict(without_waves))
    load_checkpoint(start, path)
    model.load_state_dict(start.state_dict(), strict=False)
    for ours, theirs in (
        (model.memory_key_value, start.memory_key_value),
        (model.query_key_value, start.query_key_value),
    ):
        assert isinstance(ours, KeyValue)
        assert isinstance(theirs, KeyValue)
        ours.take_over(theirs)


def save_checkpoint(model: STM, path: str | Path, *, half: bool = False) -> None:
    """Writes all weights as safetensors, whole or not at all.

    The file's metadata name the format and the architecture.

    Args:
        half: convolutions as float16; statistics, scales and shifts stay as they are.

    Raises:
        InputError: the file cannot be written.
    """
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if half:
        kernels = (name for name, weight in model.named_parameters() if weight.ndim > 1)
        state |= {name: state[name].half() for name in kernels}
    facts = {name: str(value) for name, value in dataclasses.asdict(model.architecture).items()}
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written, {path.parent} is not a folder")
    write_tensors(path, state, {"format": FORMAT, **facts})


def architecture_of(path: str | Path) -> Architecture:
    """The arguments of the `STM` whose weights a checkpoint holds, read off the shapes of its entries.

    Works for every file that `load_checkpoint` takes: `STM(**dataclasses.asdict(architecture_of(path)))` fits it.

    Raises:
        InputError: no such file, not a checkpoint of tensors, or not one of an STM.
    """
    state = {our_name(name): tensor for name, tensor in read_state_dict(path).items()}
    architecture = _recognise(state)
    if architecture is None:
        raise InputError(
            f"{path}: found no STM with a known backbone in its {len(state)} entries, expected an STM checkpoint"
        )
    return architecture


def load_backbone(model: STM, weights: "ResNet18_Weights | ResNet50_Weights | str | Path") -> None:
    """Loads the trunk of all encoders, in place; convolutions that see masks stay as they are.

    Args:
        model: the network.
        weights: torchvision's weights of the same ResNet (may be downloaded); a key of `PRETRAINED` for a network on
            that trunk; or a file with the state dict of either.

    Raises:
        InputError: the file is missing or no checkpoint, the download failed, or the weights are those of another
            network.
    """
    if isinstance(weights, str) and weights in PRETRAINED:
        found = read_state_dict(pretrained_file(weights))
    elif isinstance(weights, str | Path):
        found = read_state_dict(weights)
    else:
        try:
            found = dict(weights.get_state_dict(check_hash=True))
        except (OSError, RuntimeError) as error:  # RuntimeError: another hash
            raise InputError(f"{weights}: cannot be downloaded ({error}); expected a network, or a file") from error
    for encoder in model.encoders():
        if isinstance(encoder, EfficientNetLite):
            trunk = from_published(found, encoder)
            expected: dict[str, Tensor] = dict(encoder.named_parameters())
        else:
            trunk, expected = _trunk(found), _trunk(encoder.state_dict())
        _check_fit(trunk, expected, weights)
        encoder.load_state_dict(trunk, strict=False)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Named tensors out of a safetensors or PyTorch file, on the CPU, without wrappers and the prefix `module.`.

    Pickled code is never run.

    Raises:
        InputError: no such file, or not a checkpoint of named tensors.
    """
    path = Path(path)
    require_file(path, "a checkpoint")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    # what a damaged or hostile file makes the two readers raise is open-ended
    except Exception as error:
        raise InputError(
            f"{path}: not a checkpoint ({type(error).__name__}), expected .safetensors or a PyTorch file of plain "
            "tensors; damaged files and files with pickled code are refused"
        ) from error
    return _named_tensors(content, path)


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: found {type(content).__name__}, expected a state dict of named tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{path}: entry {name!r} is {type(tensor).__name__}, expected a state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _recognise(state: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture of a state dict with our names; None where it is not that of an STM with a known backbone."""
    telling = ["query_key_value.key.weight", "decoder.compress.weight"]
    if any(name not in state or state[name].ndim != 4 for name in telling):
        return None
    backbone = next((name for name, layout in BACKBONES.items() if layout.fits(state)), None)
    if backbone is None:
        return None
    key, compress = (state[name] for name in telling)
    if not any(name.startswith("memory_encoder.") for name in state):
        frame_dim = len(state.get("query_key_value.frame.weight", ()))
        key_dim = key.shape[0] + PLACE_CHANNELS
        return Architecture(backbone, key_dim, frame_dim + CELLS, compress.shape[0], shared_trunk=True)
    unit_keys = "memory_key_value.key_length" in state
    waves = len(state.get("memory_key_value.position_strength", ()))
    return Architecture(backbone, key.shape[0], compress.shape[1] // 2, compress.shape[0], unit_keys, waves)


def _trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What STM takes of a ResNet; BatchNorm's counters, which old files lack, mean nothing to fixed statistics."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2", "layer3")
        and not name.endswith("num_batches_tracked")
    }


def _check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object) -> None:
    """Raises InputError that names every difference, as far as a line is readable."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} of shape {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        rest = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise InputError(f"{source}: does not fit the network: {'; '.join(problems[:MOST_PROBLEMS])}{rest}")
