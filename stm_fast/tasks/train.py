"""stm-fast train: trains a network, in one or several runs, with one or several processes."""

import time
from pathlib import Path

from stm_fast.printing import remark, say
from stm_fast.progress import progress_bar, waiting
from stm_fast.runs.ranks import launched
from stm_fast.tasks.interruption import how_to_resume, stop_on_signals
from stm_fast.training.building import build_clip_loss, build_clips
from stm_fast.training.config import TrainingConfig
from stm_fast.training.config_file import write_config
from stm_fast.training.run_folder import CONFIG_HEADER, RunFolder
from stm_fast.training.trainer import Trainer


def train_network(
    config: TrainingConfig, output: Path, *, resume: bool, skip_corrupt: bool, deadline: float, end: float | None
) -> int:
    """Trains until the end of the configuration, a signal, or the deadline.

    Args:
        output: the folder of the run.
        deadline: the `time.monotonic()` at which the run ends with a checkpoint.
        end: the `time.monotonic()` at which the schedule ends; None if the configuration gives the number of epochs.

    Returns:
        The exit code.

    Raises:
        InputError: data or weights that are missing or do not fit, or another run in the folder.
    """
    with waiting("loading data and network"):
        clips = build_clips(config, skip_corrupt)  # before the weights, which may have to be downloaded
        trainer = Trainer(config, build_clip_loss(config), clips, output, resume=resume)
    leads = launched().leads
    if leads:
        folder = RunFolder(output)
        write_config(config, folder.config, CONFIG_HEADER)
    with stop_on_signals() as stop, progress_bar("training", "steps") as bar:
        finished = trainer.run(lambda: stop() or time.monotonic() > deadline, bar if leads else None, end=end)
    trainer.close()
    if leads:
        say(f"{trainer.step} steps {'done' if finished else 'so far'}, results in {output}")
        if not finished or end is not None:
            remark(*how_to_resume())
    return stop.exit_code if stop() and not finished else 0
