"""A run from its first step to its last, in one piece or many: the same weights either way."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from stm_fast.data.clips import ClipBatch, TrainingClip
from stm_fast.data.device_clips import DeviceClips
from stm_fast.errors import InputError
from stm_fast.inference import check_backend
from stm_fast.network import save_checkpoint
from stm_fast.runs.ranks import launched
from stm_fast.training.checkpoint import write_state
from stm_fast.training.config import TrainingConfig
from stm_fast.training.learner import Learned, Learner
from stm_fast.training.loading import draw_steps, load_steps
from stm_fast.training.log import TrainingLog, Window
from stm_fast.training.pace import Pace
from stm_fast.training.pictures import draw_clip, write_picture
from stm_fast.training.resuming import restoring, state_of
from stm_fast.training.run_folder import RunFolder
from stm_fast.training.sampler import TicketSampler
from stm_fast.training.step import ClipLoss
from stm_fast.training.validation import Validator

# how much longer than the first the last validation may take, and what comes after it
_PATIENCE = 1.2
_LEAVING_SECONDS = 2.0
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Trainer:
    """A run of training (STM, "Two-stage Training"); under torchrun a part of it in each process.

    What a step computes depends on the configuration, the weights and the step's number alone. A run that is
    interrupted anywhere and resumed ends with the same weights, with the same number of threads on a CPU to the bit.
    So does, up to rounding, one with another number of processes, where BatchNorm is fixed: else each process and each
    part of a batch has statistics of its own.

    Args:
        config: of the run.
        clip_loss: the network inside its loss, on the CPU.
        clips: asked for by tickets.
        output: folder of the run.
        resume: go on from the checkpoint in `output`, or begin where there is none.

    Attributes:
        step: how many steps are done.

    Raises:
        InputError: a folder that holds another run, a precision that the device has not, a backend that cannot run
            there, a batch that cannot be shared out, sequences that cannot be validated with, machines that do not see
            the same folder.
    """

    def __init__(
        self, config: TrainingConfig, clip_loss: ClipLoss, clips: Dataset[TrainingClip], output: Path, *, resume: bool
    ) -> None:
        self._config, self._clips = config, clips
        self._most_epochs = config.epochs
        self._accelerator = _accelerator(config)
        self._folder = RunFolder(output)
        if self._accelerator.is_main_process:
            self._folder.claim(resume, config.starts)
        self._accelerator.wait_for_everyone()
        self._learner = Learner(config, clip_loss, self._accelerator)
        check_backend(clip_loss.model, config.backend)
        self._validate = None if config.validation is None else Validator(config.validation, config.backend)
        self.step, self._best, self._window = 0, -math.inf, Window()
        state = state_of(self._folder.checkpoint, config)
        if state is not None:
            with restoring(self._folder.checkpoint):
                self._learner.restore(state)
            self.step, self._best, self._window = state["step"], state["best"], Window(**state["window"])
        self._check_that_all_begin_alike()

    def run(
        self,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int | None], None] | None = None,
        *,
        end: float | None = None,
    ) -> bool:
        """Trains to the end, or until `stop` is true in any process; either way the last step is kept.

        Args:
            progress: called with the steps done and those there are.
            end: when to be done, on the monotonic clock. The run gets as many epochs as there is time for, at most its
                own, and so its schedule ends then. It validates before the first step and after the last one.

        Returns:
            Whether this was the end.

        Raises:
            InputError: bad data, a full disk, a loss that is not a number; the last checkpoint is whole.
        """
        log = TrainingLog(self._folder.path, self.step) if self._accelerator.is_main_process else None
        pace = None if end is None else self._pace(end, log)
        validated = False
        before = time.perf_counter()
        # a GPU's queue takes the next batch's work before this step's loss is waited for
        ahead = isinstance(self._clips, DeviceClips)
        # however it ends, the loaders end with it
        with closing(self._batches()) as steps:
            batches = next(steps, None)
            while batches is not None:
                learned = self._learner.step(batches, self.step, self._config.steps)
                self.step += 1
                following = next(steps, None) if ahead else None
                asked = stop() or (pace is not None and pace.over)
                stopping = self._count(learned, batches, asked)
                self._fit(pace)
                stopping |= self.step >= self._config.steps
                self._window.seconds += time.perf_counter() - before
                self._report(log, learned, batches[0])
                validated = self._end_of_epoch(log)
                if stopping or validated or self.step % self._config.log.checkpoint == 0:
                    self._save()
                if progress is not None:
                    progress(self.step, self._config.steps)
                if stopping:
                    break
                before = time.perf_counter()
                batches = following if ahead else next(steps, None)
        if pace is not None and not validated and not stop():
            self._validated(log)
            self._save()
        return self.step >= self._config.steps

    def close(self) -> None:
        """Leaves the other processes."""
        self._accelerator.end_training()

    def _check_that_all_begin_alike(self) -> None:
        steps = self._accelerator.gather(torch.tensor([self.step], device=self._accelerator.device)).unique().tolist()
        if len(steps) > 1:
            raise InputError(
                f"{self._folder.checkpoint}: found at steps {steps} by different processes, expected the same by all: "
                "all machines have to see one output folder"
            )

    def _batches(self) -> Generator[list[ClipBatch], None, None]:
        """For each step that is left, the parts of this process's share."""
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        sampler, parts = TicketSampler(self._config, self.step, rank, processes), self._config.optimizer.accumulate
        if isinstance(self._clips, DeviceClips):
            return draw_steps(self._clips.to(self._accelerator.device), sampler, parts=parts)
        return load_steps(
            self._clips,
            sampler,
            parts=parts,
            workers=self._config.workers,
            pin_memory=self._accelerator.device.type == "cuda",
        )

    def _pace(self, end: float, log: TrainingLog | None) -> Pace:
        """What there is time for until `end`, less what it takes to validate, which is done once."""
        before = time.monotonic()
        self._validated(log)
        return Pace(self.step, end - _PATIENCE * (time.monotonic() - before) - _LEAVING_SECONDS)

    def _fit(self, pace: Pace | None) -> None:
        """Gives the run as many epochs as there is time for, where that can be told anew."""
        steps = None if pace is None else pace.steps(self.step)
        if steps is None:
            return
        least = self._accelerator.gather(torch.tensor([steps], device=self._accelerator.device)).min()
        epochs = int(least) * self._config.optimizer.batch // self._config.clips_per_epoch
        self._config = replace(self._config, epochs=max(1, min(epochs, self._most_epochs)))

    def _count(self, learned: Learned, batches: list[ClipBatch], asked: bool) -> bool:
        """Adds a step to the window. Returns whether any process was asked to stop."""
        skipped = sum(batch.skipped for batch in batches)
        own = torch.stack([learned.loss.double(), *learned.loss.new_tensor([asked, skipped], dtype=torch.float64)])
        total = self._accelerator.reduce(own, "sum").tolist()
        loss = total[0] / self._accelerator.num_processes
        if not math.isfinite(loss):
            raise InputError(
                f"{self._folder.path}: the loss of step {self.step} is {loss}; begin anew with a lower optimizer.lr or "
                "an optimizer.clip_norm"
            )
        self._window.losses.append(loss)
        self._window.skipped += int(total[2])
        return bool(total[1])

    def _report(self, log: TrainingLog | None, learned: Learned, batch: ClipBatch) -> None:
        """Writes a line and a picture where they are due."""
        every = self._config.log
        last = self.step >= self._config.steps
        if self.step % every.every == 0 or last:
            line = self._window.line(self._config.optimizer.batch) | {
                "step": self.step,
                "epoch": self.step * self._config.optimizer.batch / self._config.clips_per_epoch,
                "learning_rate": learned.learning_rate,
                "gradient_norm": learned.gradient_norm.item(),
            }
            self._window = Window(skipped=self._window.skipped)
            if log is not None:
                log.write(line)
        if log is not None and every.pictures is not None and (self.step % every.pictures == 0 or last):
            frames, ids, objects = self._learner.place(batch)
            picture = draw_clip(self._learner.clip_loss, frames[0], ids[0], objects[0])
            write_picture(picture, self._folder.picture(self.step))

    def _end_of_epoch(self, log: TrainingLog | None) -> bool:
        """Validates after an epoch in which that is due. Returns whether it did."""
        batch, clips = self._config.optimizer.batch, self._config.clips_per_epoch
        epoch = self.step * batch // clips
        if self._validate is None or epoch == (self.step - 1) * batch // clips:
            return False
        if epoch % self._validate.every and self.step < self._config.steps:
            return False
        return self._validated(log)

    def _validated(self, log: TrainingLog | None) -> bool:
        """Validates and keeps the best weights. Returns whether there is something to validate with."""
        if self._validate is None:
            return False
        scores = self._validate(self._learner.model)
        if log is not None:
            log.write({"step": self.step} | scores)
            if scores["J&F-Mean"] > self._best:
                save_checkpoint(self._learner.model, self._folder.best)
        self._best = max(self._best, scores["J&F-Mean"])
        return True

    def _save(self) -> None:
        """Leaves all that the run needs to go on from here."""
        if self._accelerator.is_main_process:
            save_checkpoint(self._learner.model, self._folder.model)
            progress = {"step": self.step, "best": self._best, "window": asdict(self._window)}
            write_state(
                self._folder.checkpoint,
                self._learner.state() | progress | {"config": asdict(self._config)},
                compact=self._config.log.compact,
            )


def _accelerator(config: TrainingConfig) -> Accelerator:
    on_cpu = not torch.accelerator.is_available()
    # accelerate would notice too late: what it was asked for first stays with the process
    if config.precision == "fp16" and on_cpu:
        raise InputError("precision: found fp16, which this machine has not: it needs a GPU")
    if config.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError("precision: found bf16, which this GPU has not")
    try:
        # on a machine without a GPU, accelerate sees torchrun's processes only if it is told to stay on the CPU
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=_PRECISIONS[config.precision])
    except ValueError as error:
        raise InputError(f"precision: found {config.precision} in a process that began with another one") from error
    if accelerator.num_processes != launched().world:
        raise InputError(f"found {accelerator.num_processes} processes, expected the {launched().world} of torchrun")
    return accelerator
