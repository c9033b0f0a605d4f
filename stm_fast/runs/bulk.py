"""Many videos, shared out among the workers of a Ray cluster."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stm_fast.choices import DEFAULT_RESULTS, Result
from stm_fast.cluster.choice import AUTO, ClusterChoice
from stm_fast.cluster.connection import Room, connected
from stm_fast.cluster.order import longest_first
from stm_fast.cluster.pool import Done, run_tasks
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.frame_source import FrameSource, frame_sources
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM
from stm_fast.network.loading import load as load_default
from stm_fast.runs.output_folder import Job, OutputOptions, job_of
from stm_fast.runs.ranks import Ranks
from stm_fast.runs.video import Hooks, InterruptedRun, Summary, segment_job
from stm_fast.store import StoreUrl, place_of

# makes the network of a worker
Load = Callable[[], STM]


class BulkResult(NamedTuple):
    """How one of the videos of `bulk` ended."""

    source: str  #: as it was given
    summary: Summary | None  #: None if it failed
    error: Exception | None  #: an InputError for bad input, otherwise a RuntimeError with the traceback of the worker
    notes: tuple[str, ...]  #: warnings


def bulk(
    sources: Iterable[str | Path],
    masks: str | Path,
    output: str | Path,
    *,
    load: Load = load_default,
    address: str = AUTO,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float | None = None,
    both: bool = False,
    memory: MemoryConfig | None = None,
    max_size: int | None = None,
    min_size: int | None = None,
    backend: str = "auto",
    write: Collection[Result] = DEFAULT_RESULTS,
    checkpoint_seconds: float = 60.0,
    allow_network: bool = False,
) -> Iterator[BulkResult]:
    """Segments many videos on a Ray cluster, and yields the result of each as it ends.

    Each worker keeps one network and segments one video at a time. Of the next 10,000 videos the largest is given to
    the next free worker. If a machine is lost, its video goes on from its checkpoint on another one; a video whose
    worker is lost four times has failed. A video that fails does not stop the others. The same call again skips the
    videos that are finished, and goes on with those that are not.

    What is held here does not grow with the number of videos, except for a number that stands for each name.

    Args:
        sources: videos, TIFF files, folders or patterns of images, or URLs, as :func:`stm_fast.segment_video` takes
            them, except for live ones. All machines must see them under the same paths.
        masks: a folder with the masks of each video: ``<name>.png``, another file of masks, or a folder ``<name>``.
        output: the results of each video are written into a subfolder with its name.
        load: called once by each worker for its network, such as ``functools.partial(stm_fast.load, "open")``. It goes
            through pickle.
        address: "host:port" of a cluster, "ray://host:port" of a Ray Client server, "local" for one on this machine
            that ends with the call, or "auto": the one that RAY_ADDRESS names or that runs here, otherwise as "local".
            If `ray.init` was called before, that cluster is used.
        workers: their number; by default, as many as there is room for.
        cpus: CPU cores for each worker.
        gpus: GPUs for each worker, such as 0.5; by default one, or none if the cluster has none.
        both, memory, max_size, min_size, backend, write, checkpoint_seconds, allow_network: as in
            :func:`stm_fast.segment_video`.

    Raises:
        InputError: Ray is not installed, no cluster answers at `address`, it is too small for a worker, an option is
            invalid, or two videos have the same name.
    """
    options = RunOptions(memory or MemoryConfig(), max_size, min_size, backend)
    outputs = OutputOptions(tuple(write), resume=True, checkpoint_seconds=checkpoint_seconds, leave_record=True)
    parsed = (source for given in sources for source in frame_sources(given, allow_network=allow_network))
    jobs = (job._replace(both=both) for job in distinct(parsed, place_of(masks), place_of(output)))
    choice = ClusterChoice(address, workers, cpus, gpus)
    with connected(choice) as room:
        for done in segment_jobs(room, jobs, load, options, outputs, several=True):
            yield BulkResult(done.task.source.text, done.result, done.error, done.notes)


def segment_jobs(
    room: Room,
    jobs: Iterable[Job],
    load: Load,
    options: RunOptions,
    outputs: OutputOptions,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    several: bool,
) -> Iterator[Done[Job, Summary]]:
    """Segments videos, the longest first; yields each as it ends. An interrupted one has no result.

    Args:
        several: the masks of each job are the folder with the masks of all.
        room, should_stop: as in `run_tasks`.

    Raises:
        InputError: as `run_tasks`.
    """
    placed = (_absolute(job) for job in jobs)
    setup = partial(_segmenter, load, options, outputs, several)
    return run_tasks(room, longest_first(placed, _length), setup, should_stop)


def _segmenter(
    load: Load, options: RunOptions, outputs: OutputOptions, several: bool, should_stop: Callable[[], bool]
) -> Callable[[Job], Summary | None]:
    """What a worker does with each video."""
    model = load()
    hooks = Hooks(should_stop, lambda *_: None, lambda _: None)

    def segment(job: Job) -> Summary | None:
        own = job.with_own_masks() if several else job
        try:
            return segment_job(own, model, options, outputs, hooks, Ranks())
        except InterruptedRun:
            return None

    return segment


def distinct(sources: Iterable[FrameSource], masks: Path | StoreUrl, output: Path | StoreUrl) -> Iterator[Job]:
    """A job for each video. Raises InputError for the second video of a name."""
    names: set[int] = set()
    for source in sources:
        job = job_of(source, masks, output)
        before = len(names)
        names.add(hash(job.name))
        if len(names) == before:
            raise InputError(f"{source.label}: same name as a video before it, expected a name of its own for each")
        yield job


def _absolute(job: Job) -> Job:
    """The job for a process with another working folder."""
    source = job.source
    if source.kind in ("path", "glob"):
        source = source._replace(text=os.path.abspath(source.text))
    masks = job.masks
    if isinstance(masks, str | Path):
        masks = _absolute_place(masks)
    return job._replace(source=source, masks=masks, output=_absolute_place(job.output))


def _absolute_place(given: str | Path | StoreUrl) -> Path | StoreUrl:
    place = place_of(given)
    if isinstance(place, Path):
        return Path(os.path.abspath(place))
    if place.scheme == "memory":
        raise InputError(f"{place}: found memory of this process, which a cluster cannot see")
    return place


def _length(job: Job) -> float:
    """How long a video takes, compared with others: its bytes; 0 if they are not known without asking a store."""
    if job.source.kind == "store":
        return job.source.nbytes or 0
    try:
        paths = (path for file in job.source.files for path in (file.iterdir() if file.is_dir() else (file,)))
        return sum(path.stat().st_size for path in paths)
    except (OSError, InputError):  # reported when the video is segmented
        return 0
