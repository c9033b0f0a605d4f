"""stm-fast train: a configuration to weights, in one piece or many, in one process or many."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stm_fast.commands.common import progress_bar
from stm_fast.commands.interruption import how_to_resume, stop_on_signals
from stm_fast.errors import InputError
from stm_fast.inference.shards import rank


def train(
    config: Annotated[Path, typer.Argument(help="YAML; configs/ has the paper's two stages and smaller ones.")],
    output: Annotated[Path, typer.Option(help="Folder for weights, checkpoint, log and pictures.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --output stopped.")] = False,
    option: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="Change the configuration: optimizer.lr=1e-4.")
    ] = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Pass over pictures that cannot be read, and count them.")
    ] = False,
    stop_after_minutes: Annotated[
        float | None, typer.Option(min=0, help="End with a checkpoint; the same command with --resume goes on.")
    ] = None,
    fit_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="As many epochs as there is time for, the end of the schedule and scores included."),
    ] = None,
) -> None:
    """Train a network as the paper does, or as a configuration of your own says.

    Under torchrun the processes share out each batch; a run may go on with another number of them.
    """
    start = time.monotonic()
    deadline = float("inf") if stop_after_minutes is None else start + 60 * stop_after_minutes
    end = None if fit_minutes is None else start + 60 * fit_minutes
    trainer = _trainer(config, option or [], output, resume, skip_corrupt)
    with stop_on_signals() as stop, progress_bar("training", "steps") as bar:
        finished = trainer.run(lambda: stop() or time.monotonic() > deadline, bar if rank() == 0 else None, end=end)
    trainer.close()
    if rank() == 0:
        print(f"{trainer.step} steps {'done' if finished else 'so far'}, results in {output}")
        if not finished or end is not None:
            print(how_to_resume(), file=sys.stderr)
    if stop() and not finished:
        raise typer.Exit(stop.exit_code)


def _trainer(path: Path, changes: list[str], output: Path, resume: bool, skip_corrupt: bool) -> Any:
    try:
        import accelerate  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise InputError(f"training needs {error.name}: pip install 'stm_fast[train]'") from None
    # imported when they are needed: other commands do without what training takes
    from stm_fast.training.building import build_clip_loss, build_clips
    from stm_fast.training.config_file import read_config
    from stm_fast.training.trainer import Trainer

    config = read_config(path, changes)
    clips = build_clips(config, skip_corrupt)  # before weights, which may have to be downloaded
    return Trainer(config, build_clip_loss(config), clips, output, resume=resume)
