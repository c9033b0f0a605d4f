"""What sharing out many videos on a Ray cluster costs, on a cluster of three nodes on this machine.

python benchmarks/bulk.py tasks       memory of the driver and the rate of 150,000 tasks that only sleep
python benchmarks/bulk.py idle        workers that wait for the last one, compared with equal numbers for each
python benchmarks/bulk.py held        bytes that the driver holds for each video
python benchmarks/bulk.py overheads   seconds of a worker's start, and of videos long, short and finished
python benchmarks/bulk.py files       files of each result

Each writes results/bulk-<command>.json; python benchmarks/make_tables.py writes the tables of docs/scale.md from them.
"""

import os
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from uuid import uuid4

import psutil
import typer

from bulk_tables import (
    EQUAL,
    FRAME,
    QUEUE,
    SKIPPED,
    START,
    VIDEO,
    FilesRow,
    HeldRow,
    IdleRow,
    OverheadRow,
    TasksRow,
)
from stm_fast import load, segment_video
from stm_fast.benchmarking.records import Record, describe_machine
from stm_fast.choices import RESULTS, Result
from stm_fast.cluster.choice import ClusterChoice
from stm_fast.cluster.connection import Room, connected
from stm_fast.cluster.order import WINDOW, longest_first
from stm_fast.cluster.pool import run_tasks
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.frame_source import FrameSource, frame_source
from stm_fast.runs.bulk import bulk, distinct
from stm_fast.runs.output_folder import RUN, Job, plan
from stm_fast.runs.ranks import Ranks
from stm_fast.versions import version_of
from stm_fast.video import OverlayVideoWriter, write_mask

NODES = 3
FOLDER = Path(__file__).resolve().parent / "results"
# after so many tasks
MARKS = (1_000, 10_000, 25_000, 50_000, 75_000, 100_000, 125_000, 150_000)
# lengths with this standard deviation of their logarithm
SIGMAS = (0.5, 1.0, 1.5)
# a video that is so many times as long as each of the others
ONE_LONG = 20
SIZE = (480, 854)
TINY = (48, 64)
FRAME_RATE = Fraction(24)
# of the clips whose files are counted
COUNTS = (3, 6)
OBJECTS = 2
_STORE_BYTES = 100 * 2**20  # of a node, the least that Ray takes is 75 MB

app = typer.Typer()


@contextmanager
def three_nodes(workers: int) -> Iterator[Room]:
    """Room for so many workers on a cluster of three nodes on this machine, which have as many CPU cores in name."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # elsewhere this cluster would take the place of one that runs on this machine
        os.environ["RAY_TMPDIR"] = folder
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            for _ in range(NODES):
                cluster.add_node(
                    num_cpus=-(-workers // NODES), object_store_memory=_STORE_BYTES, include_dashboard=False
                )
            with connected(ClusterChoice(cluster.address, workers)) as room:
                yield room
        finally:
            cluster.shutdown()


def recorded(name: str, settings: dict[str, Any], rows: Iterable[Any]) -> None:
    """Prints the rows as they come, and writes their record."""
    record = Record[Any](describe_machine("cpu") | {"ray": version_of("ray")}, settings)
    for row in rows:
        record.rows.append(row)
        print(row, flush=True)
        record.write(FOLDER / f"bulk-{name}.json")


# many tasks


@app.command()
def tasks(
    count: Annotated[int, typer.Option(min=1)] = MARKS[-1],
    workers: int = 24,
    seconds: Annotated[float, typer.Option(help="Mean sleep of a task.")] = 0.005,
    seed: int = 0,
) -> None:
    """Tasks that only sleep, given out as videos are: names that differ, the longest of a window first."""
    settings = {"workers": workers, "mean_seconds": seconds, "sigma": SIGMAS[1], "seed": seed, "nodes": NODES}
    length = partial(drawn, seed, SIGMAS[1], seconds)
    jobs = distinct(sources(count), Path("masks"), Path("out"))
    with three_nodes(workers) as room:
        done = run_tasks(room, longest_first(jobs, length), partial(sleeper, length))
        recorded("tasks", settings, sampled(room, done))


def sources(count: int, folder: Path = Path("/data/videos")) -> Iterator[FrameSource]:
    return (frame_source(folder / f"{number:08}.mp4") for number in range(count))


def drawn(seed: int, sigma: float, mean: float, job: Job) -> float:
    """The seconds of a video, always the same: log-normal, with this mean."""
    return mean * random.Random(f"{seed} {job.name}").lognormvariate(-(sigma**2) / 2, sigma)


def sleeper(length: Callable[[Job], float], should_stop: Callable[[], bool]) -> Callable[[Job], bool]:
    """What a worker does."""

    def run(job: Job) -> bool:
        time.sleep(length(job))
        return True

    return run


def sampled(room: Room, done: Iterable[Any]) -> Iterator[TasksRow]:
    """A row at each of MARKS. Raises the error of a task that fails."""
    start = time.monotonic()
    for count, one in enumerate(done, 1):
        if one.error is not None:
            raise one.error
        if count == 1:
            start = time.monotonic()
        if count in MARKS:
            store = [
                found()["object_store_memory"] for found in (room.ray.cluster_resources, room.ray.available_resources)
            ]
            yield TasksRow(count, time.monotonic() - start, *resident(), store[0] - store[1])


def resident() -> tuple[float, float, float]:
    """Megabytes of this process, of the head's tables, and of the processes that start workers."""
    this = psutil.Process()
    sizes: dict[str, int] = {}
    for child in this.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            name = child.name()
            sizes[name] = sizes.get(name, 0) + child.memory_info().rss
    return this.memory_info().rss / 1e6, sizes["gcs_server"] / 1e6, sizes["raylet"] / 1e6


# idle workers


@app.command()
def idle(
    videos: Annotated[int, typer.Option(min=2)] = 200,
    seconds: Annotated[float, typer.Option(help="Mean sleep of a video.")] = 0.1,
    seeds: int = 5,
    workers: Annotated[list[int], typer.Option()] = [4, 8],  # noqa: B006
) -> None:
    """The time until the last video ends: with sleeping workers of --ray; as sums for equal numbers, as by torchrun."""
    settings = {"videos": videos, "mean_seconds": seconds, "seeds": seeds, "nodes": NODES}
    with three_nodes(max(workers)) as room:
        cases = ((seed, count) for seed in range(seeds) for count in workers)
        rows = (row for seed, count in cases for row in shared_out(room._replace(workers=count), videos, seconds, seed))
        recorded("idle", settings, rows)


def shared_out(room: Room, videos: int, mean: float, seed: int) -> Iterator[IdleRow]:
    for name, lengths in skewed(videos, mean, seed).items():
        about = (seed, sum(lengths), max(lengths))
        shares = [Ranks(rank, room.workers).share(lengths) for rank in range(room.workers)]
        yield IdleRow(name, room.workers, EQUAL, *about, max(map(sum, shares)))
        yield IdleRow(name, room.workers, QUEUE, *about, slept(room, lengths))


def skewed(videos: int, mean: float, seed: int) -> dict[str, list[float]]:
    """Lengths in seconds, by what they are."""
    found = {}
    for sigma in SIGMAS:
        draw = random.Random(seed)
        found[f"log-normal, sigma {sigma:g}"] = [
            mean * draw.lognormvariate(-(sigma**2) / 2, sigma) for _ in range(videos)
        ]
    equal = [mean] * videos
    equal[random.Random(seed).randrange(videos)] *= ONE_LONG
    return found | {f"one {ONE_LONG} times as long as the others": equal}


def slept(room: Room, lengths: Sequence[float]) -> float:
    """Seconds from the first begin to the last end, on workers that begin together."""
    with tempfile.TemporaryDirectory() as meeting:
        setup = partial(timed_sleeper, meeting, room.workers)
        done = run_tasks(room, longest_first(lengths, float), setup)
        spans = [one.result for one in done]
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def timed_sleeper(
    meeting: str, workers: int, should_stop: Callable[[], bool]
) -> Callable[[float], tuple[float, float]]:
    """A function that sleeps and returns when it began and ended; made once all workers have come to the folder."""
    Path(meeting, uuid4().hex).touch()
    while len(os.listdir(meeting)) < workers:
        time.sleep(0.01)

    def run(seconds: float) -> tuple[float, float]:
        begin = time.monotonic()
        time.sleep(seconds)
        return begin, time.monotonic()

    return run


# what is held


@app.command()
def held(videos: Annotated[int, typer.Option(min=WINDOW)] = 1_000_000) -> None:
    """What the driver holds: names of all videos, jobs of the window, and the list of a command line."""
    with tempfile.TemporaryDirectory() as folder:
        recorded("held", {"videos": videos}, held_rows(videos, WINDOW, Path(folder)))


def held_rows(videos: int, window: int, folder: Path) -> Iterator[HeldRow]:
    """Only the videos that are planned as by a command exist, in the folder, as empty files."""
    masks, output = folder / "masks", folder / "results"

    def names() -> Iterator[Job]:
        """Jobs of which the last one is still to come."""
        jobs = distinct(sources(videos), masks, output)
        next(islice(jobs, videos - 2, None))
        return jobs

    yield holding("its name, in `bulk`", videos, names)
    yield holding("its job, of the next 10,000", window, lambda: list(distinct(sources(window), masks, output)))
    masks.mkdir()
    for source in sources(window, folder):
        Path(source.text).touch()
        (masks / f"{source.name}.png").touch()
    yield holding("its job, in `stm-fast segment`", window, lambda: plan(list(sources(window, folder)), masks, output))


def holding(what: str, videos: int, make: Callable[[], object]) -> HeldRow:
    """Measured while what is made is held; the seconds in a run of their own."""
    start = time.monotonic()
    make()
    seconds = time.monotonic() - start
    tracemalloc.start()
    made = make()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del made
    return HeldRow(what, videos, size / videos, seconds / videos)


# overheads

DTYPES = {f"{FRAME}, in bfloat16": "bfloat16", FRAME: "float32"}


@app.command()
def overheads(rounds: Annotated[int, typer.Option(min=1)] = 3, frames: int = 100, tiny: int = 200) -> None:
    """One worker with one core: its start, videos of 480p with one object, and finished videos."""
    settings = {"frames": frames, "size": "480p", "objects": 1, "tiny": tiny, "weights": "default", "dtype": "float32"}
    with three_nodes(1) as room, tempfile.TemporaryDirectory() as folder:
        recorded("overheads", settings, overhead_rows(room, Path(folder), rounds, frames, tiny))


def overhead_rows(room: Room, folder: Path, rounds: int, frames: int, tiny: int) -> Iterator[OverheadRow]:
    yield summed_up(START, [timed_start(room) for _ in range(rounds)])
    # the longest first: the first one waits for the worker, and does not count
    lengths = [frames + 1] * (rounds + 1) + [1] * rounds
    clips = [write_clip(folder, f"clip{number}", SIZE, length) for number, length in enumerate(lengths)]
    for what, dtype in DTYPES.items():
        seconds = gaps(clips, folder, dtype, load=partial(load, dtype=dtype))
        short = seconds[rounds:]
        yield summed_up(what, [(long - median(short)) / frames for long in seconds[:rounds]])
    yield summed_up(VIDEO, short)
    many = [write_clip(folder, f"tiny{number}", TINY, 2) for number in range(tiny)]
    gaps(many, folder, "tiny", min_size=1)
    yield summed_up(SKIPPED, gaps(many, folder, "tiny", min_size=1))


def summed_up(what: str, seconds: Sequence[float]) -> OverheadRow:
    return OverheadRow(what, len(seconds), median(seconds), min(seconds), max(seconds))


def timed_start(room: Room) -> float:
    """Seconds until a new worker has loaded the network."""
    start = time.monotonic()
    for one in run_tasks(room, [0], loaded):
        assert one.result
    return time.monotonic() - start


def loaded(should_stop: Callable[[], bool]) -> Callable[[int], bool]:
    load(dtype="float32")
    return lambda _: True


def write_clip(folder: Path, name: str, size: tuple[int, int], frames: int, objects: int = 1) -> Path:
    """A synthetic clip, and in a folder `masks` the mask of its first frame."""
    height, width = size
    clip = SyntheticClip(0, frames=max(frames, 2), height=height, width=width, objects=objects)
    path = folder / f"{name}.mp4"
    with OverlayVideoWriter(path, width, height, FRAME_RATE) as writer:
        for index, frame in enumerate(islice(clip, frames)):
            writer.write(frame.image, float(index / FRAME_RATE))
    (folder / "masks").mkdir(exist_ok=True)
    write_mask(folder / "masks" / f"{name}.png", clip[0].ids)
    return path


def gaps(videos: Sequence[Path], folder: Path, output: str, **options: Any) -> list[float]:
    """Seconds of each video after the first one, on one worker, in the order in which they end."""
    ends = []
    for one in bulk(videos, folder / "masks", folder / output, workers=1, **options):
        if one.error is not None:
            raise one.error
        ends.append(time.monotonic())
    return [after - before for before, after in pairwise(ends)]


# files


@app.command()
def files() -> None:
    """Counts the files of each result, for clips with two objects and different numbers of frames."""
    with tempfile.TemporaryDirectory() as folder:
        recorded("files", {"objects": OBJECTS}, file_rows(Path(folder)))


def file_rows(folder: Path) -> Iterator[FilesRow]:
    model, (few, many) = load(), COUNTS
    for frames in COUNTS:
        write_clip(folder, f"clip{frames}", TINY, frames, OBJECTS)

    def written(result: Result, frames: int) -> int:
        video, mask, output = f"clip{frames}.mp4", f"masks/clip{frames}.png", folder / f"{result}{frames}"
        segment_video(folder / video, folder / mask, output, model=model, write=[result], min_size=1)
        return sum(path.is_file() and path.name != RUN for path in output.rglob("*"))

    for result in RESULTS:
        least = written(result, few)
        each = (written(result, many) - least) // (many - few)
        yield FilesRow(result, each, least - each * few)


if __name__ == "__main__":
    app()
