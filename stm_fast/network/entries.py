"""Named tensors of untrusted files."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from stm_fast.errors import InputError, reading, require_file
from stm_fast.network.torch_file import InvalidFileError, load_torch_file

_log = logging.getLogger(__name__)

# keys under which training scripts store the weights in a checkpoint; the first one found is used
WRAPPERS = ("state_dict", "network", "model", "net", "module", "model_state_dict", "weights", "ema")
_MAX_WRAPPER_DEPTH = 3
# parts that PyTorch's module wrappers add anywhere in a name
_WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# prefixes of all names if a script has the network inside another module
_PREFIXES = ("model", "network", "net")
# largest ratio of the size of all tensors to that of their file; more than 1 because tensors may share memory
_MAX_SHARING = 2


class Entries(NamedTuple):
    """Tensors with the names of a network, and their names in the file.

    Attributes:
        tensors: strided and real, on the CPU; memory-mapped if the format allows that.
        in_file: names in the file, by names without wrappers.
        others: names, without wrappers, of entries that are not tensors.
        metadata: of a safetensors file.
    """

    tensors: dict[str, Tensor]
    in_file: dict[str, str]
    others: set[str]
    metadata: dict[str, str]


def read_entries(path: Path) -> Entries:
    """Named tensors from a safetensors or PyTorch file, distinguished by their first bytes.

    The weights may be at the top level or under a key of `WRAPPERS`, next to other data of trainers: numbers, lists,
    dictionaries, NumPy numbers, and scalar tensors whose name has no dot. Prefixes of `torch.nn.DataParallel`,
    `torch.compile` etc. are removed from names. Pickled code is never run.

    Raises:
        InputError: no such file, not a checkpoint of named tensors, tensors larger than the file, or an entry that is
            not a plain tensor.
    """
    require_file(path, "a checkpoint")
    content, metadata = _content(path)
    entries = _named_tensors(content, path)
    for name, tensor in entries.tensors.items():
        unusual = unusual_kind(tensor)
        if unusual:
            raise InputError(f"{path}: entry {entries.in_file[name]!r} is {unusual}, expected a plain tensor")
    _check_bytes(entries, path)
    return entries._replace(metadata=metadata)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: eight bytes for the length of the JSON that follows."""
    with reading(path), path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _content(path: Path) -> tuple[Any, dict[str, str]]:
    safe = is_safetensors(path)
    try:
        if safe:
            with safetensors.safe_open(path, "pt") as file:
                return safetensors.torch.load_file(path), file.metadata() or {}
        return load_torch_file(path, mapped=True), {}
    except InvalidFileError as error:
        why: object = error
    # damaged or hostile files can raise any exception
    except Exception as error:
        why = type(error).__name__
    raise InputError(
        f"{path}: not a checkpoint ({why}), expected .safetensors or a PyTorch file of plain tensors; damaged files "
        "and files with pickled code are refused"
    )


def _named_tensors(content: object, path: Path) -> Entries:
    content = _unwrapped(content, path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: found {type(content).__name__}, expected a state dict of named tensors")
    if not any(isinstance(tensor, Tensor) for tensor in content.values()):
        first = next(iter(content.items()), None)
        found = "nothing" if first is None else f"entry {str(first[0])[:99]!r}, {type(first[1]).__name__}"
        raise InputError(f"{path}: found {found}, expected a state dict of named tensors")
    entries = Entries({}, {}, set(), {})
    for in_file, tensor in content.items():
        if not isinstance(tensor, Tensor):
            entries.others.add(_without_wrappers(str(in_file)))
            continue
        if not isinstance(in_file, str):
            raise InputError(
                f"{path}: found {type(in_file).__name__} as a name, expected a state dict of named tensors"
            )
        name = _without_wrappers(in_file)
        if "." not in name and tensor.ndim == 0:
            continue  # a counter, such as that of `AveragedModel`
        if name in entries.tensors:
            raise InputError(f"{path}: found {name!r} both as {entries.in_file[name]!r} and as {in_file!r}")
        entries.tensors[name] = tensor.detach() if type(tensor) is nn.Parameter else tensor
        entries.in_file[name] = in_file
    return entries


def _unwrapped(content: object, path: Path) -> object:
    for _ in range(_MAX_WRAPPER_DEPTH):
        found = _wrapped(content)
        if not found:
            break
        if len(found) > 1:
            _log.warning("%s: took the weights under %r, found some under %s too", path, found[0], ", ".join(found[1:]))
        assert isinstance(content, Mapping)
        content = content[found[0]]
    return content


def _wrapped(content: object, depth: int = _MAX_WRAPPER_DEPTH) -> list[str]:
    """The keys of `WRAPPERS` that have tensors under them."""
    if not isinstance(content, Mapping) or depth == 0:
        return []
    return [key for key in WRAPPERS if _has_tensors(content.get(key)) or _wrapped(content.get(key), depth - 1)]


def _has_tensors(content: object) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPED]
    while len(parts) > 1 and parts[0] in _PREFIXES:
        del parts[0]
    return ".".join(parts)


def unusual_kind(tensor: Tensor) -> str | None:
    """The kind of a tensor that is not plain, dense and real; None for others."""
    kinds = {
        type(tensor).__name__: type(tensor) not in (Tensor, nn.Parameter),
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "sparse": tensor.layout is not torch.strided,
        "on the meta device, without numbers": tensor.is_meta,
        "complex": tensor.is_complex(),
    }
    return next((kind for kind, found in kinds.items() if found), None)


def _check_bytes(entries: Entries, path: Path) -> None:
    sizes = {name: math.prod(tensor.shape) * tensor.itemsize for name, tensor in entries.tensors.items()}
    total, file_size = sum(sizes.values()), path.stat().st_size
    if total > _MAX_SHARING * file_size:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"{path}: found tensors of {total} bytes in a file of {file_size}, such as {entries.in_file[largest]!r} of "
            f"shape {list(entries.tensors[largest].shape)}, expected numbers for each"
        )
