"""stm-fast train: a configuration to weights."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.commands.numbers import real
from stm_fast.commands.options import input_option, output_option, speed_option
from stm_fast.errors import InputError
from stm_fast.printing import say
from stm_fast.progress import waiting
from stm_fast.runs.ranks import launched
from stm_fast.training.recipes import RECIPES, configuration_file, introduction
from stm_fast.training.run_folder import RunFolder
from stm_fast.versions import how_to_install


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help=f"The run is described by this YAML file, or by a recipe of the package: {', '.join(RECIPES)}. "
            "config.yaml in the folder of a run is its own.",
        ),
    ],
    output: Annotated[
        Path | None,
        output_option(
            "--output", "-o", help="Weights, checkpoint, configuration, log and images are written into this folder."
        ),
    ] = None,
    print_config: Annotated[
        bool,
        output_option(
            "--print-config",
            help="The configuration is printed with all its settings and changes, and nothing is trained.",
        ),
    ] = False,
    resume: Annotated[
        bool, output_option("--resume", help="The run in the output folder goes on where it stopped.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        input_option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="An entry of the configuration is changed, as in optimizer.lr=1e-4. The option may be repeated.",
        ),
    ] = None,
    skip_corrupt: Annotated[
        bool, input_option("--skip-corrupt", help="Images that cannot be read are skipped and counted in the log.")
    ] = False,
    stop_after_minutes: Annotated[
        float | None,
        speed_option(**real(0, 10**6), help="The run stops after this time, and --resume continues it."),
    ] = None,
    fit_minutes: Annotated[
        float | None,
        speed_option(
            **real(0, 10**6),
            help="The whole schedule and the final scores fit into this time, with as many epochs as possible.",
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
            raise InputError(f"training needs {package}: {how_to_install('train')}")
    if print_config:
        _print_configuration(configuration_file(config), changes or [])
        raise typer.Exit
    if output is None:
        raise InputError("--output: missing, expected a folder for the run")
    folder = RunFolder(output)
    folder.check(resume)
    from stm_fast.training.config_file import read_config

    configuration = read_config(configuration_file(config), changes or [])
    folder.check_inputs(configuration.starts)
    with waiting("loading PyTorch"):
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


def _print_configuration(file: Path, changes: list[str]) -> None:
    from stm_fast.training.config_file import config_text, read_config

    say(*config_text(read_config(file, changes), introduction(file)).splitlines())
