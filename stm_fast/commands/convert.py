"""stm-fast convert: a checkpoint as safetensors."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.commands.options import Overwrite, output_option
from stm_fast.errors import InputError
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.whole_file import refuse_input


def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="The checkpoint is a published .pth, with or without 'module.' in its names, or one of ours. Several "
            "are averaged; one listed twice counts twice.",
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The weights are written to this .safetensors file.")
    ],
    half: Annotated[
        bool, output_option("--half", help="Convolutions are stored as float16, for half the size.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint, or the mean of several, to a safetensors file. No code in them is ever run."""
    if os.path.lexists(target) and not overwrite:
        raise InputError(f"{target}: exists already; give another name, or --overwrite")
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: expected a name that ends in .safetensors")
    checkpoints = [NetworkChoice(source, device="cpu") for source in sources]
    refuse_input(target, [checkpoint.file for checkpoint in checkpoints if checkpoint.file is not None])
    from stm_fast.tasks.network import convert_checkpoints

    convert_checkpoints(checkpoints, target, half=half)
