"""stm-fast train: a configuration to weights, in one piece or many, in one process or many."""

import time
from pathlib import Path

from stm_fast.printing import remark, say
from stm_fast.runs.ranks import launched
from stm_fast.tasks.interruption import how_to_resume, stop_on_signals
from stm_fast.tasks.progress import progress_bar
from stm_fast.training.building import build_clip_loss, build_clips
from stm_fast.training.config import TrainingConfig
from stm_fast.training.trainer import Trainer


def train_network(
    config: TrainingConfig, output: Path, *, resume: bool, skip_corrupt: bool, deadline: float, end: float | None
) -> int:
    """Trains until the configuration's end, a signal, or the deadline.

    Args:
        output: folder of the run.
        deadline: of `time.monotonic`; the run then ends with a checkpoint.
        end: of the schedule, likewise; None where the configuration says how many epochs there are.

    Returns:
        The exit code.

    Raises:
        InputError: data or weights that are missing or do not fit, or a run in the folder that is another one.
    """
    clips = build_clips(config, skip_corrupt)  # before weights, which may have to be downloaded
    trainer = Trainer(config, build_clip_loss(config), clips, output, resume=resume)
    leads = launched().leads
    with stop_on_signals() as stop, progress_bar("training", "steps") as bar:
        finished = trainer.run(lambda: stop() or time.monotonic() > deadline, bar if leads else None, end=end)
    trainer.close()
    if leads:
        say(f"{trainer.step} steps {'done' if finished else 'so far'}, results in {output}")
        if not finished or end is not None:
            remark(*how_to_resume())
    return stop.exit_code if stop() and not finished else 0
