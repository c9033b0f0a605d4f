"""stm-fast segment: segments one video or several."""

import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from stm_fast.errors import InputError, as_input_error
from stm_fast.inference.options import RunOptions
from stm_fast.memory import RankLostError
from stm_fast.printing import remark, warn
from stm_fast.progress import Advance, progress_bar
from stm_fast.runs.estimation import Estimate, near_limit
from stm_fast.runs.output_folder import Job, OutputOptions, check_output, remove_results
from stm_fast.runs.ranks import Ranks, joined, launched
from stm_fast.runs.video import Hooks, InterruptedRun, Summary, segment_job
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.flags import with_flags
from stm_fast.tasks.interruption import how_to_resume, stop_on_signals
from stm_fast.tasks.network import load_for_inference
from stm_fast.tasks.progress import print_summary, print_untrained, task_name

_log = logging.getLogger(__name__)

_UNEXPECTED, _WRONG_USE, _RANK_LOST = 1, 2, 1

# segments a video, reporting progress to the callback
_Segment = Callable[[Job, Advance], Summary]


def segment_videos(
    jobs: Sequence[Job],
    *,
    network: NetworkChoice,
    options: RunOptions,
    outputs: OutputOptions,
    shard_memory: bool,
) -> int:
    """Segments one video, or several one after the other.

    Among several, finished ones are skipped, and one that fails does not stop the others.

    Args:
        shard_memory: the processes split the memory of one video.

    Returns:
        The exit code: 0, 2 if only bad input made videos fail, or 1 for any other error.

    Raises:
        InputError: as :func:`stm_fast.segment_video`, for a single video.
    """
    model = load_for_inference(network)
    several = len(jobs) > 1
    if several and outputs.overwrite:
        _clear(launched().share(jobs))
    if several:
        outputs = replace(outputs, resume=outputs.resume or not outputs.overwrite, leave_record=True)
    with stop_on_signals() as stop, joined(shard_memory) as ranks:

        def segment(job: Job, advance: Advance) -> Summary:
            return segment_job(job, model, options, outputs, Hooks(stop, advance, _tell_estimate), ranks)

        try:
            code = _segment_many(jobs, segment) if several else _segment_one(jobs[0], segment, ranks, network.untrained)
        except InterruptedRun as error:
            return _ended(error, stop.exit_code)
        except RankLostError as error:
            return _ended(error, _RANK_LOST)
    if network.untrained and launched().leads:
        print_untrained()
    return code


def _segment_one(job: Job, segment: _Segment, ranks: Ranks, untrained: bool) -> int:
    """One video, by all processes if they split its memory, otherwise by the first one."""
    if launched().leads:
        with progress_bar(task_name(untrained)) as advance:
            summary = segment(job, advance)
        print_summary(summary)
    elif ranks.group is not None:
        segment(job, lambda *_: None)
    return 0


def _segment_many(jobs: Sequence[Job], segment: _Segment) -> int:
    """Segments this process's share of the videos, and waits for the other processes."""
    ranks = launched()
    share = ranks.share(jobs)
    failures: dict[Job, Exception] = {}
    for job in share:
        try:
            with progress_bar(job.name) as advance:
                summary = segment(job.with_own_masks(), advance)
            print_summary(summary)
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
        warn(with_flags(failure) if known else f"{job.source.label}: {type(failure).__name__}: {failure}")
    # torchrun stops all processes when one ends with an error
    ranks.wait()
    if not failures:
        return 0
    return _WRONG_USE if all(isinstance(failure, InputError) for failure in failures.values()) else _UNEXPECTED


def _clear(jobs: Sequence[Job]) -> None:
    """Removes earlier results of all videos, so that the run can be resumed without --overwrite."""
    for job in jobs:
        with suppress(InputError):  # reported when that video is processed
            check_output(job.output, True, job.with_own_masks().inputs)
            remove_results(job.output)


def _tell_estimate(estimate: Estimate) -> None:
    """Tells the memory that the run will take: on request, or if little more is available."""
    if launched().leads:
        near = near_limit(estimate)
        _log.log(logging.INFO if near is None else logging.WARNING, "memory: %s%s", estimate, near or "")


def _ended(why: Exception, code: int) -> int:
    warn(str(why))
    if launched().leads:
        remark(*how_to_resume())
    return code
