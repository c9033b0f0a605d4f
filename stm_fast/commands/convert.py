"""stm-fast convert: a checkpoint as safetensors."""

import os
from pathlib import Path
from typing import Annotated

import typer

import stm_fast.tasks as tasks
from stm_fast.commands.options import Overwrite
from stm_fast.errors import InputError
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.whole_file import refuse_input


def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="The published .pth, with or without 'module.' in its names, or ours; of several, which may be named "
            "twice, the mean is taken.",
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store convolutions as float16: half the size.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn a checkpoint, or the mean of several, into a safetensors file; no code in them is ever run."""
    if os.path.lexists(target) and not overwrite:
        raise InputError(f"{target}: exists already; give another name, or --overwrite")
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: expected a name that ends in .safetensors")
    checkpoints = [NetworkChoice(source, device="cpu") for source in sources]
    refuse_input(target, [checkpoint.file for checkpoint in checkpoints])
    tasks.convert_checkpoints(checkpoints, target, half=half)
