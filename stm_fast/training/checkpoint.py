"""A run's state on disk: a plain dictionary, written whole or not at all, read without running code."""

import io
from pathlib import Path

import torch

from stm_fast.errors import InputError
from stm_fast.training.compact import State, pack, unpack
from stm_fast.whole_file import whole_file

FORMAT = "stm_fast training 1"
COMPACT = "stm_fast training 2, compact"


def write_state(path: Path, state: State, *, compact: bool = False) -> None:
    """Writes tensors, numbers, text, lists and dictionaries.

    Args:
        compact: as :mod:`stm_fast.training.compact` says.

    Raises:
        InputError: the file cannot be written, as on a full disk; the file that was there before is still whole.
    """
    # in memory first: torch's own writer does not say why a disk refuses
    buffer = io.BytesIO()
    torch.save({"format": COMPACT} | pack(state) if compact else {"format": FORMAT} | state, buffer)
    with whole_file(path, durable=True) as partial:
        partial.write_bytes(buffer.getbuffer())


def read_state(path: Path) -> State:
    """What `write_state` wrote, on the CPU. Raises InputError where it did not write this."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # what a damaged or hostile file makes the reader raise is open-ended
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint of a training run ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") not in (FORMAT, COMPACT):
        raise InputError(f"{path}: not a checkpoint of a training run, expected one that stm-fast train wrote")
    return unpack(state) if state["format"] == COMPACT else state
