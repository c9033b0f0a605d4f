"""Loads the clips of the remaining steps: in worker processes, in this process, or on the device."""

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
    """Yields the batches of this process for each step.

    Args:
        clips: indexed by the sampler's keys.
        sampler: of the remaining steps.
        parts: batches of the sampler per step.
        workers: number of worker processes; 0 loads in this process.
        pin_memory: for a GPU.

    Raises:
        InputError: a clip cannot be loaded.
    """
    loader = DataLoader(
        clips,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        # spawned, because a forked process can deadlock on locks that other threads held
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_ignore_signals,
        pin_memory=pin_memory,
        # so that it does not draw from torch's global generator
        generator=torch.Generator(),
    )
    batches = iter(loader)
    try:
        yield from map(list, zip(*[batches] * parts, strict=True))
    except InputError as error:
        # the message of a worker's exception is its traceback
        message = str(error).strip().splitlines()[-1]
        raise InputError(message.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")) from error
    finally:
        # a traceback can keep the loader alive; at exit, Python would wait for its processes, which ignore SIGTERM
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def draw_steps(clips: DeviceClips, sampler: StepSampler, *, parts: int) -> Generator[list[ClipBatch], None, None]:
    """`load_steps` for clips that are drawn on the device.

    Raises:
        InputError: no clip of a batch has an object.
    """
    yield from map(list, zip(*[map(clips.batch, sampler)] * parts, strict=True))


def _ignore_signals(_: int) -> None:
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach all processes; the training process ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
