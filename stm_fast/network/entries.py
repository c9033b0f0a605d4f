"""Named tensors of an untrusted file, before their numbers are read."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from stm_fast.errors import InputError, reading, require_file
from stm_fast.network.torch_file import RefusedFileError, load_torch_file

_log = logging.getLogger(__name__)

# keys under which training scripts keep the weights in a checkpoint; the first one found is used
WRAPPERS = ("state_dict", "network", "model", "net", "module", "model_state_dict", "weights", "ema")
_DEEPEST_WRAPPER = 3
# parts that PyTorch's wrappers of modules add to a name, anywhere in it
_WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# prefixes of all names that come from a script's own class around the network
_FIRST = ("model", "network", "net")
# bytes of all tensors over those of their file: tensors may share memory, but not all of it
_MOST_SHARED = 2


class Entries(NamedTuple):
    """Tensors with the names of a network, and their names in the file.

    Attributes:
        tensors: strided and real, on the CPU; views of the file, where its format allows that.
        in_file: the name in the file, by the name without wrappers.
        others: names, without wrappers, of entries that are not tensors.
    """

    tensors: dict[str, Tensor]
    in_file: dict[str, str]
    others: set[str]


def read_entries(path: Path) -> Entries:
    """Named tensors from a safetensors or PyTorch file, distinguished by their first bytes.

    The weights may be on their own or under a key of `WRAPPERS`, next to whatever trainers store: numbers, lists,
    dictionaries, NumPy's numbers, and scalar tensors whose name has no dot. What `torch.nn.DataParallel`,
    `torch.compile` and the like add to names is removed. Pickled code is never run, and no weights are read.

    Raises:
        InputError: no such file, not a checkpoint of named tensors, one that announces more than it has, or an entry
            that is not a plain tensor, which is named.
    """
    require_file(path, "a checkpoint")
    entries = _named_tensors(_content(path), path)
    for name, tensor in entries.tensors.items():
        unusual = _unusual(tensor)
        if unusual:
            raise InputError(f"{path}: entry {entries.in_file[name]!r} is {unusual}, expected a plain tensor")
    _check_bytes(entries, path)
    return entries


def _content(path: Path) -> Any:
    with reading(path), path.open("rb") as file:
        start = file.read(9)
    try:
        # eight bytes give the length of the JSON after them
        if start[8:] == b"{":
            return safetensors.torch.load_file(path)
        return load_torch_file(path, mapped=True)
    except RefusedFileError as error:
        why: object = error
    # a damaged or hostile file can make the reader raise anything
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
    entries = Entries({}, {}, set())
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
            continue  # a counter: of epochs, or of what `AveragedModel` has averaged
        if name in entries.tensors:
            raise InputError(f"{path}: found {name!r} both as {entries.in_file[name]!r} and as {in_file!r}")
        entries.tensors[name] = tensor.detach() if type(tensor) is nn.Parameter else tensor
        entries.in_file[name] = in_file
    return entries


def _unwrapped(content: object, path: Path) -> object:
    for _ in range(_DEEPEST_WRAPPER):
        found = _wrapped(content)
        if not found:
            break
        if len(found) > 1:
            _log.warning("%s: took the weights under %r, found some under %s too", path, found[0], ", ".join(found[1:]))
        assert isinstance(content, Mapping)
        content = content[found[0]]
    return content


def _wrapped(content: object, depth: int = _DEEPEST_WRAPPER) -> list[str]:
    """The keys of `WRAPPERS` with tensors under them."""
    if not isinstance(content, Mapping) or depth == 0:
        return []
    return [key for key in WRAPPERS if _has_tensors(content.get(key)) or _wrapped(content.get(key), depth - 1)]


def _has_tensors(content: object) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPED]
    while len(parts) > 1 and parts[0] in _FIRST:
        del parts[0]
    return ".".join(parts)


def _unusual(tensor: Tensor) -> str | None:
    """The kind of a tensor that is not dense numbers in memory; None for a plain tensor."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return type(tensor).__name__
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_meta:
        return "on the meta device, without numbers"
    return "complex" if tensor.is_complex() else None


def _check_bytes(entries: Entries, path: Path) -> None:
    sizes = {name: math.prod(tensor.shape) * tensor.itemsize for name, tensor in entries.tensors.items()}
    total, there = sum(sizes.values()), path.stat().st_size
    if total > _MOST_SHARED * there:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"{path}: found tensors of {total} bytes in a file of {there}, such as {entries.in_file[largest]!r} of "
            f"shape {list(entries.tensors[largest].shape)}, expected numbers for each"
        )
