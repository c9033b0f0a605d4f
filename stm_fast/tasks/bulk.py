"""Many videos one after the other: finished ones are skipped, and one that fails does not stop the others."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from stm_fast.errors import InputError, as_input_error
from stm_fast.inference import InterruptedRun, Summary
from stm_fast.inference.bulk import Job, masks_of
from stm_fast.inference.output_folder import check_output, remove_results
from stm_fast.inference.process_group import wait_for_all
from stm_fast.inference.shards import shard
from stm_fast.printing import warn
from stm_fast.tasks.progress import print_result, progress_bar

_UNEXPECTED, _WRONG_USE = 1, 2

# segments (source, masks, output), and says with the callback how far it is
Segment = Callable[[Path, Path, Path, Callable[[int, int | None], None]], Summary]


def clear(jobs: Sequence[Job], masks: Path) -> None:
    """Removes earlier results of all videos, so that after an interruption the same goes on without --overwrite."""
    for job in jobs:
        with suppress(InputError):  # its own turn tells
            check_output(job.output, True, (job.source, masks_of(job, masks)))
            remove_results(job.output)


def segment_many(jobs: Sequence[Job], masks: Path, segment: Segment) -> int:
    """Segments this process's share of the videos, and waits for the other processes.

    Returns:
        The exit code: 0, or 2 where some videos were bad input, or 1 where anything else went wrong with one.
    """
    share = shard(jobs)
    failures: dict[Job, Exception] = {}
    for job in share:
        try:
            with progress_bar(job.name) as advance:
                summary = segment(job.source, masks_of(job, masks), job.output, advance)
            print_result(summary)
        except InterruptedRun:
            raise
        except Exception as error:
            failures[job] = as_input_error(error) or error
            if not isinstance(failures[job], InputError):
                traceback.print_exc()
    if failures:
        warn(f"{len(failures)} of {len(share)} videos failed:")
    for job, failure in failures.items():
        known = isinstance(failure, InputError)
        warn(str(failure) if known else f"{job.source}: {type(failure).__name__}: {failure}")
    # a process that ends with an error would take the others with it
    wait_for_all()
    if not failures:
        return 0
    return _WRONG_USE if all(isinstance(failure, InputError) for failure in failures.values()) else _UNEXPECTED
