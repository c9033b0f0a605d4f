"""A run's state on disk: a plain dictionary, written atomically and read without executing code."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stm_fast.errors import InputError, option
from stm_fast.network.torch_file import RefusedFileError, load_torch_file
from stm_fast.training.compact import State, pack, unpack
from stm_fast.whole_file import whole_file

FORMAT = "stm_fast training 1"
COMPACT = "stm_fast training 2, compact"
WHAT_TO_DO = f"restore a copy of it, or start again in another {option('output')}"


def write_state(path: Path, state: State, *, compact: bool = False) -> None:
    """Writes tensors, numbers, text, lists and dictionaries.

    Args:
        compact: as :mod:`stm_fast.training.compact` says.

    Raises:
        InputError: the file cannot be written, as on a full disk; the previous file is intact.
    """
    # in memory first: torch's own writer does not report why writing failed
    buffer = io.BytesIO()
    torch.save({"format": COMPACT} | pack(state) if compact else {"format": FORMAT} | state, buffer)
    with whole_file(path, durable=True) as partial:
        partial.write_bytes(buffer.getbuffer())


def read_state(path: Path) -> State:
    """What `write_state` wrote, on the CPU.

    Raises:
        InputError: not such a file, or a damaged one: checksums cover all of it.
    """
    try:
        state = load_torch_file(path, mapped=False)
    except RefusedFileError as error:
        raise InputError(f"{path}: not a checkpoint of a training run ({error}); {WHAT_TO_DO}") from error
    if not isinstance(state, dict) or state.get("format") not in (FORMAT, COMPACT):
        raise InputError(f"{path}: not a checkpoint of a training run, expected one that stm-fast train wrote")
    _check_bytes(state, path)
    if state["format"] == FORMAT:
        return state
    try:
        return unpack(state)
    # invalid entries can raise anything
    except Exception as error:
        raise InputError(
            f"{path}: its entries are not those of a compact checkpoint ({type(error).__name__}); {WHAT_TO_DO}"
        ) from error


def _check_bytes(state: State, path: Path) -> None:
    """Raises InputError where tensors are not plain, or are views of fewer bytes than their shapes take."""
    total = 0
    for tensor in _tensors(state, set()):
        if tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta:
            raise InputError(f"{path}: holds a tensor that is not plain, which no training run writes; {WHAT_TO_DO}")
        total += tensor.numel() * tensor.itemsize
    there = path.stat().st_size
    if total > 2 * there:
        raise InputError(f"{path}: found tensors of {total} bytes in a file of {there}; {WHAT_TO_DO}")


def _tensors(content: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple) and id(content) not in seen:
        seen.add(id(content))
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _tensors(inner, seen)
