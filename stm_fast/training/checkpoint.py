"""The checkpoint of a training run: a plain dictionary, written atomically and read without executing code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stm_fast.errors import InputError, option
from stm_fast.network.entries import unusual_kind
from stm_fast.network.torch_file import InvalidFileError, load_torch_file
from stm_fast.training.compact import State, pack, unpack
from stm_fast.whole_file import in_memory, whole_file

FORMAT = "stm_fast training 1"
COMPACT = "stm_fast training 2, compact"
WHAT_TO_DO = f"restore a copy of it, or start again in another {option('output')}"


def write_state(path: Path, state: State, *, compact: bool = False) -> None:
    """Writes a state of tensors, numbers, strings, lists and dictionaries.

    Args:
        path: of the file.
        state: with a `Learner.state`, if `compact`.
        compact: see :mod:`stm_fast.training.compact`.

    Raises:
        InputError: the file cannot be written, for example on a full disk; the previous file is intact.
    """
    content = {"format": COMPACT} | pack(state) if compact else {"format": FORMAT} | state
    serialized = in_memory(lambda file: torch.save(content, file))
    with whole_file(path, durable=True) as partial:
        partial.write_bytes(serialized)


def read_state(path: Path) -> State:
    """Reads a state, on the CPU.

    Raises:
        InputError: not a checkpoint of `write_state`, or one that is damaged, which checksums detect.
    """
    try:
        state = load_torch_file(path, mapped=False)
    except InvalidFileError as error:
        raise InputError(f"{path}: not a checkpoint of a training run ({error}); {WHAT_TO_DO}") from error
    if not isinstance(state, dict) or state.get("format") not in (FORMAT, COMPACT):
        raise InputError(f"{path}: not a checkpoint of a training run, expected one that stm-fast train wrote")
    _check_bytes(state, path)
    if state["format"] == FORMAT:
        return state
    try:
        return unpack(state)
    # invalid entries can raise any exception
    except Exception as error:
        raise InputError(
            f"{path}: its entries are not those of a compact checkpoint ({type(error).__name__}); {WHAT_TO_DO}"
        ) from error


def _check_bytes(state: State, path: Path) -> None:
    """Raises InputError if tensors are not plain, or their total size is far more than that of the file."""
    total = 0
    for tensor in _tensors(state, set()):
        if unusual_kind(tensor):
            raise InputError(f"{path}: holds a tensor that is not plain, which no training run writes; {WHAT_TO_DO}")
        total += tensor.numel() * tensor.itemsize
    file_size = path.stat().st_size
    if total > 2 * file_size:
        raise InputError(f"{path}: found tensors of {total} bytes in a file of {file_size}; {WHAT_TO_DO}")


def _tensors(content: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple) and id(content) not in seen:
        seen.add(id(content))
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _tensors(inner, seen)
