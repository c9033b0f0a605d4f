"""stm-fast train: a configuration to weights."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.commands.numbers import real
from stm_fast.errors import InputError
from stm_fast.runs.ranks import launched
from stm_fast.training.run_folder import RunFolder


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file; configs/ has the paper's two stages and smaller ones.")],
    output: Annotated[Path, typer.Option(help="The folder for weights, checkpoint, log and images.")],
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --output where it stopped.")] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o", metavar="KEY=VALUE", help="Override an entry of the configuration, as in optimizer.lr=1e-4."
        ),
    ] = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Skip images that cannot be read, and report how many.")
    ] = False,
    stop_after_minutes: Annotated[
        float | None,
        typer.Option(**real(0, 10**6), help="Stop after this time with a checkpoint; --resume continues from it."),
    ] = None,
    fit_minutes: Annotated[
        float | None,
        typer.Option(
            **real(0, 10**6),
            help="Fit the whole schedule and the final scores into this time, with as many epochs as possible.",
        ),
    ] = None,
) -> None:
    """Train a network as in the paper, or by a configuration of your own.

    Under torchrun each batch is split among the processes; a run may be resumed with a different number of them.
    """
    start = time.monotonic()
    launched()  # refuses invalid environment variables before any work
    for package in ("accelerate", "yaml"):
        if find_spec(package) is None:
            raise InputError(f"training needs {package}: pip install 'stm_fast[train]'")
    folder = RunFolder(output)
    folder.check(resume)
    from stm_fast.training.config_file import read_config

    configuration = read_config(config, option or [])
    folder.check_inputs(configuration.starts)
    from stm_fast.tasks.train import train_network

    code = train_network(
        configuration,
        output,
        resume=resume,
        skip_corrupt=skip_corrupt,
        deadline=float("inf") if stop_after_minutes is None else start + 60 * stop_after_minutes,
        end=None if fit_minutes is None else start + 60 * fit_minutes,
    )
    raise typer.Exit(code)
