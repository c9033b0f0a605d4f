"""Reads and writes weights: the published checkpoint, our own safetensors, and pretrained trunks."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from stm_fast.errors import InputError, shown
from stm_fast.network.architecture import MIN_SIZES, Architecture
from stm_fast.network.efficientnet import EfficientNetLite, from_published
from stm_fast.network.encoders import BACKBONES
from stm_fast.network.entries import read_entries
from stm_fast.network.key_value import KeyValue
from stm_fast.network.outline import outline
from stm_fast.network.pretrained import PRETRAINED, pretrained_file
from stm_fast.network.shared_trunk import CELLS, POSITION_CHANNELS
from stm_fast.network.stm import STM
from stm_fast.tensor_file import write_tensors

if TYPE_CHECKING:
    from torchvision.models import ResNet18_Weights, ResNet50_Weights

FORMAT = "stm_fast"
MAX_PROBLEMS = 10  # listed in a message; further ones are counted
_COUNTER = "num_batches_tracked"
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)

# parts of the published names that differ from ours
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
    """The name in `STM`'s state dict of a published entry; our own names are unchanged."""
    return ".".join(PUBLISHED_TO_OURS.get(part, part) for part in name.split("."))


def published_name(name: str) -> str:
    """The name in the published checkpoint of an entry of `STM`'s state dict."""
    return ".".join(OURS_TO_PUBLISHED.get(part, part) for part in name.split("."))


def load_network(path: str | Path) -> STM:
    """Builds the network of a checkpoint, in float32 on the CPU, and loads its weights.

    Names and shapes of all entries are checked before the network is built.

    Args:
        path: as for `load_checkpoint`.

    Raises:
        InputError: as `load_checkpoint` and `architecture_of` do.
    """
    file = _read(path)
    model = _outline_of(file)
    # the tensors become the parameters, without a copy
    model.load_state_dict(
        {name: tensor.contiguous().clone() for name, tensor in _converted(file, model).items()}, assign=True
    )
    model.min_size = file.min_size
    return model


def load_checkpoint(model: STM, path: str | Path) -> None:
    """Loads all weights of a network, and their `min_size`, in place.

    Args:
        model: the network; its device and dtype do not change.
        path: `.safetensors` as `save_checkpoint` writes it, or a PyTorch checkpoint with the published names or ours,
            alone or inside a trainer's checkpoint, see :mod:`stm_fast.network.entries`. Weights may have any
            floating-point dtype; BatchNorm's `num_batches_tracked`, which is unused, may be missing.

    Raises:
        InputError: no such file, not a checkpoint of tensors, another architecture, or entries that are missing,
            unexpected, of the wrong shape or not finite; then the model is unchanged.
    """
    file = _read(path)
    _load(model, file)
    model.min_size = file.min_size


def load_start(model: STM, path: str | Path) -> None:
    """Loads initial weights for training, in place: of the same architecture, or of the same without position waves.

    Position waves that the file does not have keep their initial strength.

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
        ours.load_without_waves(theirs)


def save_checkpoint(model: STM, path: str | Path, *, half: bool = False) -> None:
    """Writes all weights as safetensors, atomically.

    The file's metadata name the format, the architecture and `min_size`.

    Args:
        half: stores convolutions as float16; statistics, scales and shifts keep their dtype.

    Raises:
        InputError: the file cannot be written, or the network is a copy from `for_inference`.
    """
    require_original(model, path)
    state = state_to_write(model, half=half)
    facts = {name: str(value) for name, value in dataclasses.asdict(model.architecture).items()}
    facts["min_size"] = str(model.min_size)
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written, {path.parent} is not a folder")
    write_tensors(path, state, {"format": FORMAT, **facts})


def state_to_write(model: nn.Module, *, half: bool) -> dict[str, Tensor]:
    """The state dict of a network, contiguous, with convolutions in float16 if `half`."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if half:
        kernels = (name for name, weight in model.named_parameters() if weight.ndim > 1)
        state |= {name: state[name].half() for name in kernels}
    return state


def require_original(model: STM, path: str | Path) -> None:
    """Raises InputError if a network that would be saved at `path` is a copy from `for_inference`."""
    if model.prepared:
        raise InputError(
            f"{path}: found a network prepared for inference, whose weights are packed, expected the original, as from "
            "STM.from_pretrained"
        )


def architecture_of(path: str | Path) -> Architecture:
    """The arguments of the `STM` in a checkpoint, from the shapes of its entries.

    Works for every file that `load_checkpoint` accepts: `STM(**dataclasses.asdict(architecture_of(path)))` fits it.

    Raises:
        InputError: no such file, not a checkpoint of tensors, or not one of an STM.
    """
    return _outline_of(_read(path)).architecture


def load_backbone(model: STM, weights: "ResNet18_Weights | ResNet50_Weights | str | Path") -> None:
    """Loads pretrained weights into the trunks of all encoders, in place; convolutions of masks are unchanged.

    Args:
        model: the network.
        weights: torchvision's weights of the same ResNet (may be downloaded); a key of `PRETRAINED`; or a file with the
            state dict of either.

    Raises:
        InputError: no such file, not a checkpoint, the download failed, or the weights are of another network.
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
            check_fit(trunk, expected, weights)
            check_numbers(trunk, weights)
        encoder.load_state_dict(trunk, strict=False)


def load_imagenet(model: STM) -> None:
    """Loads ImageNet weights into the trunks of all encoders, in place (may be downloaded).

    Raises:
        InputError: there are none for this backbone, or as in `load_backbone`.
    """
    name = model.architecture.backbone
    weights = BACKBONES[name].imagenet
    if weights is None:
        raise InputError(f"backbone_weights: no ImageNet weights for {name}, expected a file")
    if weights in PRETRAINED:
        load_backbone(model, weights)
    else:
        # imported here, because it takes as long as importing torch
        from torchvision.models import get_weight

        load_backbone(model, get_weight(weights))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of `read_entries`. Raises InputError as `read_entries` does."""
    return read_entries(Path(path)).tensors


class _File(NamedTuple):
    """The entries of a checkpoint under our names."""

    path: Path
    state: dict[str, Tensor]
    in_file: dict[str, str]  # names in the file, by our names
    others: set[str]  # our names of entries that are not tensors
    missing_name: Callable[[str], str]  # the name in the file, by our name, of an entry that is missing
    min_size: int


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
        _min_size(entries.metadata, path),
    )


def _min_size(metadata: Mapping[str, str], path: str | Path) -> int:
    """`STM.min_size` of a file; 1 if it states none."""
    least, most = MIN_SIZES
    found = metadata.get("min_size", "1") if metadata.get("format") == FORMAT else "1"
    if not (found.isascii() and found.isdigit() and len(found) < 6 and least <= int(found) <= most):
        raise InputError(f"{path}: min_size: found {shown(found)}, expected {least} to {most}")
    return int(found)


def _load(model: STM, file: _File) -> None:
    architecture = _recognize(file.state)
    if architecture is not None and architecture != model.architecture:
        raise InputError(f"{file.path}: found the weights of {architecture}, expected {model.architecture}")
    model.load_state_dict(_converted(file, model))


def _architecture(file: _File) -> Architecture:
    architecture = _recognize(file.state)
    if architecture is None:
        raise InputError(
            f"{file.path}: found no STM with a known backbone in its {len(file.state)} entries, expected an STM "
            "checkpoint"
        )
    return architecture


def _outline_of(file: _File) -> STM:
    """The network of a file, on the meta device. Raises InputError if names or shapes do not match."""
    architecture = _architecture(file)
    try:
        model = outline(architecture)
    except ValueError as error:
        raise InputError(f"{file.path}: found the shapes of {architecture}, which is invalid: {error}") from None
    _check_shapes(file, model.state_dict())
    return model


def _converted(file: _File, model: STM) -> dict[str, Tensor]:
    """The state dict of a file in the model's dtypes. Raises InputError for a wrong name, shape or number."""
    expected = model.state_dict()
    _check_shapes(file, expected)
    missing = {
        name: torch.zeros_like(tensor, device="cpu") for name, tensor in expected.items() if name not in file.state
    }
    state = {name: tensor.to(expected[name].dtype) for name, tensor in file.state.items()}
    check_numbers({file.in_file[name]: tensor for name, tensor in state.items()}, file.path)
    return state | missing


def _check_shapes(file: _File, expected: Mapping[str, Tensor]) -> None:
    def in_file(name: str) -> str:
        return file.in_file.get(name, file.missing_name(name))

    problems = [f"{in_file(name)} is not a tensor" for name in expected if name in file.others]
    if problems:
        raise InputError(f"{file.path}: does not fit the network: {_shortened(problems)}")
    check_fit(
        {in_file(name): tensor for name, tensor in file.state.items()},
        {in_file(name): tensor for name, tensor in expected.items()},
        file.path,
    )


def _recognize(state: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture of a state dict with our names; None if it is not an STM with a known backbone."""
    required = ["query_key_value.key.weight", "decoder.compress.weight"]
    if any(name not in state or state[name].ndim != 4 for name in required):
        return None
    backbone = next((name for name, layout in BACKBONES.items() if layout.fits(state)), None)
    if backbone is None:
        return None
    key, compress = (state[name] for name in required)
    if not any(name.startswith("memory_encoder.") for name in state):
        frame_dim = _length(state, "query_key_value.frame.weight")
        key_dim = key.shape[0] + POSITION_CHANNELS
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
    """A trunk's entries from published ones; shapes are first checked on the meta device."""
    expected = dict(encoder.named_parameters())
    try:
        shapes = from_published({name: tensor.to("meta") for name, tensor in found.items()}, encoder.stages)
    except RuntimeError:
        raise InputError(f"{source}: does not fit the network: shapes of convolutions and their BatchNorms") from None
    check_fit(shapes, expected, source)
    trunk = from_published(found, encoder.stages)
    check_numbers(trunk, source)
    return trunk


def check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object) -> None:
    """Raises InputError that lists differences of names, shapes and dtypes, up to `MAX_PROBLEMS`.

    BatchNorm's counters, which old and converted files lack, may be missing: fixed statistics do not use them.
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
        raise InputError(f"{source}: does not fit the network: {_shortened(problems)}")


def check_numbers(state: Mapping[str, Tensor], source: object) -> None:
    """Raises InputError that names the first entry with a NaN, an infinity or a negative variance."""
    for name, tensor in state.items():
        if not _finite(tensor):
            found = "NaN" if tensor.isnan().any() else f"infinity, or more than {tensor.dtype} can hold"
            raise InputError(f"{source}: entry {name} holds {found}, expected finite numbers")
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(f"{source}: entry {name} holds a negative variance, expected 0 or more")


def _finite(tensor: Tensor) -> bool:
    # the sum takes one pass, and is finite only if all numbers are; it may overflow though they are
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return math.isfinite(total) or bool(tensor.isfinite().all())


def _shortened(problems: Sequence[str]) -> str:
    rest = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
    return "; ".join(problems[:MAX_PROBLEMS]) + rest
