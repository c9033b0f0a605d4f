"""Loads the clips of the remaining steps: in worker processes, inline, or from the device."""

import signal
from collections.abc import Generator

import torch
from torch.utils.data import DataLoader, Dataset

from stm_fast.data.clips import ClipBatch, TrainingClip, collate
from stm_fast.data.device_clips import DeviceClips
from stm_fast.errors import InputError
from stm_fast.training.sampler import StepSampler


def load_steps(
    clips: Dataset[TrainingClip], sampler: StepSampler, *, parts: int, workers: int, pin_memory: bool
) -> Generator[list[ClipBatch], None, None]:
    """Yields the parts of this process's share of each step.

    Args:
        clips: indexed by the sampler's keys.
        parts: how many batches of the sampler make a step.
        workers: processes that load; 0 loads inline.
        pin_memory: for a GPU.

    Raises:
        InputError: a clip that cannot be loaded.
    """
    loader = DataLoader(
        clips,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        # spawned, not forked: a forked copy of a process whose threads hold locks can hang
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_ignore_signals,
        pin_memory=pin_memory,
        # not to draw from torch's global generator
        generator=torch.Generator(),
    )
    batches = iter(loader)
    try:
        for step in zip(*[batches] * parts, strict=True):
            yield list(step)
    except InputError as error:
        # a worker's error carries its traceback, the message last
        message = str(error).strip().splitlines()[-1]
        raise InputError(message.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")) from error
    finally:
        # an error's traceback keeps the loader alive; Python would wait at exit for its processes, which ignore SIGTERM
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def draw_steps(clips: DeviceClips, sampler: StepSampler, *, parts: int) -> Generator[list[ClipBatch], None, None]:
    """The same, drawn on the device, inline.

    Raises:
        InputError: clips without an object.
    """
    batches = map(clips.batch, sampler)
    for step in zip(*[batches] * parts, strict=True):
        yield list(step)


def _ignore_signals(_: int) -> None:
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach all processes; the training process ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
