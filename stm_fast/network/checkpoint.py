"""Weights in and out of files: the published checkpoint, our own safetensors, torchvision's trunks."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.network.architecture import Architecture
from stm_fast.network.efficientnet import EfficientNetLite, from_published
from stm_fast.network.encoders import BACKBONES
from stm_fast.network.entries import read_entries
from stm_fast.network.key_value import KeyValue
from stm_fast.network.outline import outline
from stm_fast.network.pretrained import PRETRAINED, pretrained_file
from stm_fast.network.shared_trunk import CELLS, PLACE_CHANNELS
from stm_fast.network.stm import STM
from stm_fast.tensor_file import write_tensors

if TYPE_CHECKING:
    from torchvision.models import ResNet18_Weights, ResNet50_Weights

FORMAT = "stm_fast"
MOST_PROBLEMS = 10  # of a checkpoint that a message names; further ones are counted
_COUNTER = "num_batches_tracked"
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)

# parts of published names that are different here; all others are the same
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
    """The state-dict entry of `STM` for a published entry; our own names stay."""
    return ".".join(PUBLISHED_TO_OURS.get(part, part) for part in name.split("."))


def published_name(name: str) -> str:
    """The entry of the published checkpoint that holds a state-dict entry of `STM`."""
    return ".".join(OURS_TO_PUBLISHED.get(part, part) for part in name.split("."))


def load_network(path: str | Path) -> STM:
    """The network whose weights a checkpoint holds, in float32 on the CPU.

    It is built only after the names and shapes of all entries were checked.

    Args:
        path: as for `load_checkpoint`.

    Raises:
        InputError: as `load_checkpoint` and `architecture_of` do.
    """
    file = _read(path)
    model = _outline_of(file)
    # the tensors become the parameters, without a copy
    model.load_state_dict(
        {name: tensor.contiguous().clone() for name, tensor in _fitting(file, model).items()}, assign=True
    )
    return model


def load_checkpoint(model: STM, path: str | Path) -> None:
    """Loads all weights of a network, in place.

    Args:
        model: the network; its device and dtype stay.
        path: `.safetensors` as `save_checkpoint` writes it, or a PyTorch checkpoint with the names of the published STM
            or ours, on its own or inside a trainer's checkpoint, see :mod:`stm_fast.network.entries`. Weights have any
            floating-point dtype; counters of BatchNorm's batches, which are unused, may be missing.

    Raises:
        InputError: no such file, not a checkpoint of tensors, another architecture, or entries that are missing,
            unexpected, of another shape or not finite; the model is then unchanged.
    """
    _load(model, _read(path))


def load_start(model: STM, path: str | Path) -> None:
    """Loads weights to train on, in place: those of the same network, or of the same one without position waves.

    Position waves that the file does not have keep their strength and add to otherwise unchanged scores.

    Raises:
        InputError: as `load_checkpoint` does.
    """
    file, without_waves = _read(path), dataclasses.replace(model.architecture, position_waves=0)
    found = _architecture(file)
    if found == model.architecture or found != without_waves:
        _load(model, file)
        return
    start = STM(**dataclasses.asdict(without_waves))
    _load(start, file)
    model.load_state_dict(start.state_dict(), strict=False)
    for ours, theirs in (
        (model.memory_key_value, start.memory_key_value),
        (model.query_key_value, start.query_key_value),
    ):
        assert isinstance(ours, KeyValue)
        assert isinstance(theirs, KeyValue)
        ours.take_over(theirs)


def save_checkpoint(model: STM, path: str | Path, *, half: bool = False) -> None:
    """Writes all weights as safetensors, atomically.

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
    """The arguments of the `STM` whose weights a checkpoint contains, from the shapes of its entries.

    Works for every file that `load_checkpoint` accepts: `STM(**dataclasses.asdict(architecture_of(path)))` fits it.

    Raises:
        InputError: no such file, not a checkpoint of tensors, or not one of an STM.
    """
    return _outline_of(_read(path)).architecture


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
            trunk = _folded(found, encoder, weights)
        else:
            trunk, expected = _trunk(found), _trunk(encoder.state_dict())
            _check_fit(trunk, expected, weights)
            _check_numbers(trunk, weights)
        encoder.load_state_dict(trunk, strict=False)


def load_imagenet(model: STM) -> None:
    """Loads the ImageNet weights of the trunk of all encoders, in place (may be downloaded).

    Raises:
        InputError: there are none for this backbone, or as `load_backbone` does.
    """
    name = model.architecture.backbone
    weights = BACKBONES[name].imagenet
    if weights is None:
        raise InputError(f"backbone_weights: there are none of ImageNet for {name}, expected a file")
    if weights in PRETRAINED:
        load_backbone(model, weights)
    else:
        # imported only here, because it takes as long as all of torch
        from torchvision.models import get_weight

        load_backbone(model, get_weight(weights))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of `read_entries`. Raises InputError as it does."""
    return read_entries(Path(path)).tensors


class _File(NamedTuple):
    """The entries of a checkpoint under our names."""

    path: Path
    state: dict[str, Tensor]
    in_file: dict[str, str]  # by our names
    others: set[str]  # entries that are not tensors, by our names
    name_there: Callable[[str], str]  # the file's name for an entry that it lacks


def _read(path: str | Path) -> _File:
    entries = read_entries(Path(path))
    state = {our_name(name): tensor for name, tensor in entries.tensors.items()}
    published = state.keys() != entries.tensors.keys()
    return _File(
        Path(path),
        state,
        {our_name(name): in_file for name, in_file in entries.in_file.items()},
        {our_name(name) for name in entries.others},
        published_name if published else our_name,
    )


def _load(model: STM, file: _File) -> None:
    architecture = _recognize(file.state)
    if architecture is not None and architecture != model.architecture:
        raise InputError(f"{file.path}: found the weights of {architecture}, expected {model.architecture}")
    model.load_state_dict(_fitting(file, model))


def _architecture(file: _File) -> Architecture:
    architecture = _recognize(file.state)
    if architecture is None:
        raise InputError(
            f"{file.path}: found no STM with a known backbone in its {len(file.state)} entries, expected an STM "
            "checkpoint"
        )
    return architecture


def _outline_of(file: _File) -> STM:
    """The network of a file, without numbers, on the meta device. Raises InputError if it does not fit the file."""
    architecture = _architecture(file)
    try:
        model = outline(architecture)
    except ValueError as error:
        raise InputError(f"{file.path}: found the shapes of {architecture}, which is none: {error}") from None
    _check_shapes(file, model.state_dict())
    return model


def _fitting(file: _File, model: STM) -> dict[str, Tensor]:
    """A model's new state, in its dtypes. Raises InputError if a name, a shape or a number is wrong."""
    expected = model.state_dict()
    _check_shapes(file, expected)
    missing = {
        name: torch.zeros_like(tensor, device="cpu") for name, tensor in expected.items() if name not in file.state
    }
    state = {name: tensor.to(expected[name].dtype) for name, tensor in file.state.items()}
    _check_numbers({file.in_file[name]: tensor for name, tensor in state.items()}, file.path)
    return state | missing


def _check_shapes(file: _File, expected: Mapping[str, Tensor]) -> None:
    def there(name: str) -> str:
        return file.in_file.get(name, file.name_there(name))

    problems = [f"{there(name)} is no tensor" for name in expected if name in file.others]
    if problems:
        raise InputError(f"{file.path}: does not fit the network: {_first(problems)}")
    _check_fit(
        {there(name): tensor for name, tensor in file.state.items()},
        {there(name): tensor for name, tensor in expected.items()},
        file.path,
    )


def _recognize(state: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture of a state dict with our names; None if it is not an STM with a known backbone."""
    telling = ["query_key_value.key.weight", "decoder.compress.weight"]
    if any(name not in state or state[name].ndim != 4 for name in telling):
        return None
    backbone = next((name for name, layout in BACKBONES.items() if layout.fits(state)), None)
    if backbone is None:
        return None
    key, compress = (state[name] for name in telling)
    if not any(name.startswith("memory_encoder.") for name in state):
        frame_dim = _length(state, "query_key_value.frame.weight")
        key_dim = key.shape[0] + PLACE_CHANNELS
        return Architecture(backbone, key_dim, frame_dim + CELLS, compress.shape[0], shared_trunk=True)
    unit_keys = "memory_key_value.key_length" in state
    waves = _length(state, "memory_key_value.position_strength")
    return Architecture(backbone, key.shape[0], compress.shape[1] // 2, compress.shape[0], unit_keys, waves)


def _length(state: Mapping[str, Tensor], name: str) -> int:
    shape = state[name].shape if name in state else ()
    return shape[0] if shape else 0


def _trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a ResNet that STM uses."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2", "layer3") and not name.endswith(_COUNTER)
    }


def _folded(found: Mapping[str, Tensor], encoder: EfficientNetLite, source: object) -> dict[str, Tensor]:
    """A trunk's entries from the published ones, whose shapes are compared first, on the meta device."""
    expected = dict(encoder.named_parameters())
    try:
        shapes = from_published({name: tensor.to("meta") for name, tensor in found.items()}, encoder)
    except RuntimeError:
        raise InputError(f"{source}: does not fit the network: shapes of convolutions and their BatchNorms") from None
    _check_fit(shapes, expected, source)
    trunk = from_published(found, encoder)
    _check_numbers(trunk, source)
    return trunk


def _check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object) -> None:
    """Raises InputError that names the differences of names, shapes and dtypes, up to `MOST_PROBLEMS`.

    BatchNorm's counters, which old and converted files lack, are unused with fixed statistics.
    """
    both = [name for name in expected if name in found]
    missing = [name for name in expected if name not in found]
    only_counters = all(name.endswith(_COUNTER) for name in missing)
    problems = [] if only_counters else [f"missing {name}" for name in missing]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} of shape {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in both
        if found[name].shape != expected[name].shape
    ]
    problems += [
        f"{name} of {str(found[name].dtype).removeprefix('torch.')} instead of floating-point numbers"
        for name in both
        if expected[name].is_floating_point() and found[name].dtype not in _FLOATS
    ]
    if problems:
        raise InputError(f"{source}: does not fit the network: {_first(problems)}")


def _check_numbers(state: Mapping[str, Tensor], source: object) -> None:
    """Raises InputError that names the first entry with a NaN, an infinity or a negative variance."""
    for name, tensor in state.items():
        if not _finite(tensor):
            found = "NaN" if tensor.isnan().any() else f"infinity, or more than {tensor.dtype} can hold"
            raise InputError(f"{source}: entry {name} holds {found}, expected finite numbers")
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(f"{source}: entry {name} holds a negative variance, expected 0 or more")


def _finite(tensor: Tensor) -> bool:
    # a sum is one pass and finite only if all parts are; it may also overflow though they are
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return math.isfinite(total) or bool(tensor.isfinite().all())


def _first(problems: Sequence[str]) -> str:
    rest = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return "; ".join(problems[:MOST_PROBLEMS]) + rest
