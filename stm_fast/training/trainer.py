"""A training run, which may be interrupted and resumed at any step without changing the result."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from stm_fast.data.clips import ClipBatch, TrainingClip
from stm_fast.data.device_clips import DeviceClips
from stm_fast.errors import InputError
from stm_fast.inference.engine import check_backend
from stm_fast.network import save_checkpoint
from stm_fast.printing import percent
from stm_fast.runs.ranks import launched
from stm_fast.training.checkpoint import write_state
from stm_fast.training.config import TrainingConfig
from stm_fast.training.learner import Learner, StepResult
from stm_fast.training.loading import draw_steps, load_steps
from stm_fast.training.log import TrainingLog, Window
from stm_fast.training.pictures import draw_clip, write_picture
from stm_fast.training.resuming import restoring, state_of
from stm_fast.training.run_folder import RunFolder
from stm_fast.training.sampler import StepSampler
from stm_fast.training.schedule import TimeBudget
from stm_fast.training.step import ClipLoss
from stm_fast.training.validation import Validator

_log = logging.getLogger(__name__)

# factor by which the last validation may be slower than the first, and time to write the checkpoint
_VALIDATION_MARGIN = 1.2
_SAVING_SECONDS = 2.0
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Trainer:
    """A training run (STM, "Two-stage Training"); under torchrun, processes divide each batch.

    A step depends on the configuration, the weights and the step's number alone, so an interruption does not change the
    final weights: not a single bit on a CPU with the same number of threads. With fixed BatchNorm, the number of
    processes only changes rounding; otherwise, each process and each part of a batch has its own statistics.

    Args:
        config: of the run.
        clip_loss: the network inside its loss, on the CPU.
        clips: indexed by `SampleKey`.
        output: folder of the run.
        resume: continues from the checkpoint in `output`, if there is one.

    Attributes:
        step: number of completed steps.

    Raises:
        InputError: a folder that holds another run, a precision or backend that the device does not support, a batch
            that the processes cannot divide evenly, sequences that are not fully annotated, machines that see different
            output folders.
    """

    def __init__(
        self, config: TrainingConfig, clip_loss: ClipLoss, clips: Dataset[TrainingClip], output: Path, *, resume: bool
    ) -> None:
        self._config, self._clips = config, clips
        self._max_epochs = config.epochs
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
        self._check_same_step()

    def run(
        self,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int | None], None] | None = None,
        *,
        end: float | None = None,
    ) -> bool:
        """Trains to the end, or until `stop` returns True in any process; in both cases, the last step is saved.

        Args:
            stop: called after each step.
            progress: called at the start and after each step with the number of completed steps and the total.
            end: when to finish, by `time.monotonic`. The number of epochs, and with it the schedule, is reduced to what
                fits in the time. The run validates before the first step and after the last one.

        Returns:
            Whether all steps are completed.

        Raises:
            InputError: invalid data, a full disk, or a loss that is not finite; the last checkpoint is still valid.
        """
        log = TrainingLog(self._folder.path, self.step) if self._accelerator.is_main_process else None
        budget = None if end is None else self._budget(end, log)
        # closing() ends the worker processes even after an error
        with closing(self._batches()) as steps:
            validated = self._train(steps, log, stop, progress, budget)
        if budget is not None and not validated and not stop():
            self._run_validation(log)
            self._save()
        return self.step >= self._config.steps

    def close(self) -> None:
        """Ends the process group."""
        self._accelerator.end_training()

    def _train(
        self,
        steps: Iterator[list[ClipBatch]],
        log: TrainingLog | None,
        stop: Callable[[], bool],
        progress: Callable[[int, int | None], None] | None,
        budget: TimeBudget | None,
    ) -> bool:
        """Takes steps until the end or a stop. Returns whether it validated after the last one."""
        validated = stopping = False
        if progress is not None:
            progress(self.step, self._config.steps)
        before = time.perf_counter()
        # queues the next batch on the GPU before waiting for this step's loss
        prefetch = isinstance(self._clips, DeviceClips)
        batches = next(steps, None)
        while batches is not None and not stopping:
            result = self._learner.step(batches, self.step, self._config.steps)
            self.step += 1
            following = next(steps, None) if prefetch else None
            stopping = self._record(result, batches, stop() or (budget is not None and budget.over))
            self._update_epochs(budget)
            stopping |= self.step >= self._config.steps
            self._window.seconds += time.perf_counter() - before
            self._report(log, result, batches[0])
            validated = self._end_of_epoch(log)
            if stopping or validated or self.step % self._config.log.checkpoint == 0:
                self._save()
            if progress is not None:
                progress(self.step, self._config.steps)
            before = time.perf_counter()
            if not stopping:
                batches = following if prefetch else next(steps, None)
        return validated

    def _check_same_step(self) -> None:
        steps = self._accelerator.gather(torch.tensor([self.step], device=self._accelerator.device)).unique().tolist()
        if len(steps) > 1:
            raise InputError(
                f"{self._folder.checkpoint}: found at steps {steps} by different processes, expected the same step by "
                "all: all machines must share one output folder"
            )

    def _batches(self) -> Generator[list[ClipBatch], None, None]:
        """Yields the batches of this process for each remaining step."""
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        sampler, parts = StepSampler(self._config, self.step, rank, processes), self._config.optimizer.accumulate
        if isinstance(self._clips, DeviceClips):
            return draw_steps(self._clips.to(self._accelerator.device), sampler, parts=parts)
        return load_steps(
            self._clips,
            sampler,
            parts=parts,
            workers=self._config.workers,
            pin_memory=self._accelerator.device.type == "cuda",
        )

    def _budget(self, end: float, log: TrainingLog | None) -> TimeBudget:
        """The time until `end`, minus the time of a validation, which is measured by validating now."""
        before = time.monotonic()
        self._run_validation(log)
        return TimeBudget(self.step, end - _VALIDATION_MARGIN * (time.monotonic() - before) - _SAVING_SECONDS)

    def _update_epochs(self, budget: TimeBudget | None) -> None:
        """Sets the number of epochs to what fits in the time, if there is a new estimate."""
        steps = None if budget is None else budget.steps(self.step)
        if steps is None:
            return
        least = self._accelerator.gather(torch.tensor([steps], device=self._accelerator.device)).min()
        epochs = int(least) * self._config.optimizer.batch // self._config.clips_per_epoch
        self._config = replace(self._config, epochs=max(1, min(epochs, self._max_epochs)))

    def _record(self, result: StepResult, batches: list[ClipBatch], asked: bool) -> bool:
        """Adds a step to the window. Returns whether any process was asked to stop. Raises InputError."""
        skipped = sum(len(batch.faults) for batch in batches)
        own = torch.stack([result.loss.double(), *result.loss.new_tensor([asked, skipped], dtype=torch.float64)])
        total = self._accelerator.reduce(own, "sum").tolist()
        loss = total[0] / self._accelerator.num_processes
        if not math.isfinite(loss):
            raise InputError(
                f"{self._folder.path}: the loss of step {self.step} is {loss}; start again with a lower "
                "optimizer.lr or an optimizer.clip_norm"
            )
        self._window.losses.append(loss)
        self._window.skipped += int(total[2])
        return bool(total[1])

    def _report(self, log: TrainingLog | None, result: StepResult, batch: ClipBatch) -> None:
        """Writes a log line and a picture if they are due."""
        every = self._config.log
        last = self.step >= self._config.steps
        if self.step % every.every == 0 or last:
            line = self._window.line(self._config.optimizer.batch) | {
                "step": self.step,
                "epoch": self.step * self._config.optimizer.batch / self._config.clips_per_epoch,
                "learning_rate": result.learning_rate,
                "gradient_norm": result.gradient_norm.item(),
            }
            self._window = Window(skipped=self._window.skipped)
            if log is not None:
                log.write(line)
        if log is not None and every.pictures is not None and (self.step % every.pictures == 0 or last):
            frames, ids, objects = self._learner.on_device(batch)
            picture = draw_clip(self._learner.clip_loss, frames[0], ids[0], objects[0])
            write_picture(picture, self._folder.picture(self.step))

    def _end_of_epoch(self, log: TrainingLog | None) -> bool:
        """Validates if an epoch has ended and validation is due. Returns whether it did."""
        batch, clips = self._config.optimizer.batch, self._config.clips_per_epoch
        epoch = self.step * batch // clips
        if self._validate is None or epoch == (self.step - 1) * batch // clips:
            return False
        if epoch % self._validate.every and self.step < self._config.steps:
            return False
        return self._run_validation(log)

    def _run_validation(self, log: TrainingLog | None) -> bool:
        """Validates, and saves the weights if they are the best. Returns whether the run has a validation set."""
        if self._validate is None:
            return False
        scores = self._validate(self._learner.model)
        if log is not None:
            told = ", ".join(f"{name} {percent(scores[f'{name}-Mean'])}" for name in ("J&F", "J", "F"))
            _log.info("step %d: %s in percent", self.step, told)
            log.write({"step": self.step} | scores)
            if scores["J&F-Mean"] > self._best:
                save_checkpoint(self._learner.model, self._folder.best)
        self._best = max(self._best, scores["J&F-Mean"])
        return True

    def _save(self) -> None:
        """Writes the weights and the checkpoint."""
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
    # checked here because accelerate would fail later, after its settings are fixed for the whole process
    if config.precision == "fp16" and on_cpu:
        raise InputError("precision: found fp16, which needs a GPU, and this machine has none")
    if config.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError("precision: found bf16, which this GPU does not support")
    try:
        # without a GPU, accelerate only uses torchrun's processes if `cpu` is set
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=_PRECISIONS[config.precision])
    except ValueError as error:
        raise InputError(f"precision: found {config.precision} in a process that began with another one") from error
    if accelerator.num_processes != launched().world:
        raise InputError(f"found {accelerator.num_processes} processes, expected the {launched().world} of torchrun")
    return accelerator
