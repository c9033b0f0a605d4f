"""Tensors are written whole or not at all."""

import errno
import os
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.whole_file import whole_file_in_folder


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, *, durable: bool = False
) -> None:
    """Writes a safetensors file.

    Args:
        tensors: contiguous.
        durable: as in `whole_file`.

    Raises:
        InputError: it cannot be written.
    """
    # safetensors writes to a hidden file of its own beside the one that it is given, and a process that is killed
    # leaves that file: so both are in a folder whose name says what it is
    try:
        with whole_file_in_folder(path, durable=durable) as file:
            # that hidden file can be read by its owner alone
            file.touch()
            usual_mode = file.stat().st_mode
            safetensors.torch.save_file(tensors, file, metadata)
            file.chmod(usual_mode)
    except SafetensorError as error:
        # it has the system's reason in words alone
        full = os.strerror(errno.ENOSPC) in str(error)
        raise InputError(f"disk full while writing {path}" if full else f"cannot write {path}: {error}") from error
