"""stm-fast train: a configuration to weights."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import stm_fast.tasks as tasks
from stm_fast.commands.numbers import real
from stm_fast.errors import InputError
from stm_fast.runs.ranks import launched
from stm_fast.training.run_folder import RunFolder


def train(
    config: Annotated[Path, typer.Argument(help="YAML; configs/ has the paper's two stages and smaller ones.")],
    output: Annotated[Path, typer.Option(help="The folder for weights, checkpoint, log and pictures.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --output stopped.")] = False,
    option: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="Change the configuration: optimizer.lr=1e-4.")
    ] = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Pass over pictures that cannot be read, and count them.")
    ] = False,
    stop_after_minutes: Annotated[
        float | None,
        typer.Option(**real(0, 10**6), help="End with a checkpoint; the same command with --resume continues."),
    ] = None,
    fit_minutes: Annotated[
        float | None,
        typer.Option(
            **real(0, 10**6), help="As many epochs as there is time for, the end of the schedule and scores included."
        ),
    ] = None,
) -> None:
    """Train a network as the paper does, or as a configuration of your own says.

    Under torchrun the processes share out each batch; a run may be resumed with another number of them.
    """
    start = time.monotonic()
    launched()  # before work: what the environment says must make sense
    for package in ("accelerate", "yaml"):
        if find_spec(package) is None:
            raise InputError(f"training needs {package}: pip install 'stm_fast[train]'")
    folder = RunFolder(output)
    folder.check(resume)
    configuration = tasks.read_config(config, option or [])
    folder.check_inputs(configuration.starts)
    code = tasks.train_network(
        configuration,
        output,
        resume=resume,
        skip_corrupt=skip_corrupt,
        deadline=float("inf") if stop_after_minutes is None else start + 60 * stop_after_minutes,
        end=None if fit_minutes is None else start + 60 * fit_minutes,
    )
    raise typer.Exit(code)
