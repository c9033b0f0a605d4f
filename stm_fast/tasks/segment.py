"""stm-fast segment: segments one video or several."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial

from stm_fast.cluster.choice import ClusterChoice
from stm_fast.cluster.connection import Room, connected
from stm_fast.cluster.pool import Done, counted, failed
from stm_fast.errors import InputError
from stm_fast.inference.options import RunOptions
from stm_fast.memory import RankLostError
from stm_fast.printing import remark, warn
from stm_fast.progress import Advance, progress_bar
from stm_fast.runs.bulk import segment_jobs
from stm_fast.runs.estimation import Estimate, near_limit
from stm_fast.runs.output_folder import Job, OutputOptions, check_output, remove_results
from stm_fast.runs.ranks import Ranks, joined, launched
from stm_fast.runs.video import Hooks, InterruptedRun, Summary, segment_job
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.flags import with_flags
from stm_fast.tasks.interruption import Stop, how_to_resume, stop_on_signals
from stm_fast.tasks.network import load_for_inference, load_model
from stm_fast.tasks.progress import print_summary, print_untrained, task_name

_Done = Done[Job, Summary]
# segments a video, reporting progress to the callback
_Segment = Callable[[Job, Advance], Summary]

_log = logging.getLogger(__name__)

_UNEXPECTED, _WRONG_USE, _RANK_LOST = 1, 2, 1


def segment_videos(
    jobs: Sequence[Job],
    *,
    network: NetworkChoice,
    options: RunOptions,
    outputs: OutputOptions,
    shard_memory: bool = False,
    cluster: ClusterChoice | None = None,
) -> int:
    """Segments one video, or several: one after the other, or on a cluster.

    Among several, finished ones are skipped, and one that fails does not stop the others.

    Args:
        shard_memory: the processes split the memory of one video.

    Returns:
        The exit code: 0, 2 if only bad input made videos fail, or 1 for any other error.

    Raises:
        InputError: as :func:`stm_fast.segment_video`, for a single video; or as :func:`stm_fast.bulk`.
    """
    several = len(jobs) > 1
    clear = several and outputs.overwrite
    if several:
        outputs = replace(outputs, resume=outputs.resume or not outputs.overwrite, leave_record=True)
    place = nullcontext() if cluster is None else connected(cluster.for_device(network.device))
    # Ray replaces the handlers of signals when it connects
    with place as room, stop_on_signals() as stop:
        try:
            if room is not None:
                code = _segment_on_cluster(jobs, network, options, outputs, room, clear, stop)
            else:
                code = _segment_here(jobs, network, options, outputs, shard_memory, clear, stop)
        except InterruptedRun as error:
            return _ended(str(error), stop.exit_code)
        except RankLostError as error:
            return _ended(str(error), _RANK_LOST)
    if network.untrained and launched().leads:
        print_untrained()
    return code


def _segment_on_cluster(
    jobs: Sequence[Job],
    network: NetworkChoice,
    options: RunOptions,
    outputs: OutputOptions,
    room: Room,
    clear: bool,
    stop: Stop,
) -> int:
    several = len(jobs) > 1
    if clear:
        load_model(replace(network, device="cpu"))  # refuses invalid weights
        _clear(jobs)
    load = partial(load_for_inference, network.absolute())
    with progress_bar(task_name(network.untrained), "videos") as advance:
        dones = segment_jobs(room, jobs, load, options, outputs, stop, several=several)
        code = _report(counted(dones, len(jobs), advance), len(jobs))
    return _ended("interrupted; all files written so far are complete", stop.exit_code) if stop() else code


def _segment_here(
    jobs: Sequence[Job],
    network: NetworkChoice,
    options: RunOptions,
    outputs: OutputOptions,
    shard_memory: bool,
    clear: bool,
    stop: Stop,
) -> int:
    model = load_for_inference(network)
    if clear:
        _clear(launched().share(jobs))
    with joined(shard_memory) as ranks:

        def segment(job: Job, advance: Advance) -> Summary:
            return segment_job(job, model, options, outputs, Hooks(stop, advance, _tell_estimate), ranks)

        if len(jobs) == 1:
            return _segment_one(jobs[0], segment, ranks, network.untrained)
        share = launched().share(jobs)
        code = _report((_done(job, segment) for job in share), len(share))
        # torchrun stops all processes when one ends with an error
        launched().wait()
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


def _done(job: Job, segment: _Segment) -> _Done:
    """Segments one of several videos. Raises InterruptedRun."""
    try:
        with progress_bar(job.name) as advance:
            return Done(job, segment(job.with_own_masks(), advance))
    except InterruptedRun:
        raise
    except Exception as error:
        return failed(job, error)


def _report(dones: Iterable[_Done], count: int) -> int:
    """Prints how videos end, and which of them failed; returns the exit code."""
    failures: list[_Done] = []
    for done in dones:
        for note in done.notes:
            warn(f"{done.task.source.label}: {note}")
        if done.result is not None:
            print_summary(done.result)
        elif done.error is not None:
            failures.append(done)
            remark(*(done.crash or "").splitlines())
    if failures and count > 1:
        warn(f"{len(failures)} of {count} videos failed:")
    for done in failures:
        crashed = f"{done.task.source.label}: {(done.crash or '').rstrip().rpartition(chr(10))[2]}"
        warn(crashed if done.problem is None else with_flags(done.problem))
    if not failures:
        return 0
    return _UNEXPECTED if any(done.crash is not None for done in failures) else _WRONG_USE


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


def _ended(why: str, code: int) -> int:
    warn(why)
    if launched().leads:
        remark(*how_to_resume())
    return code
