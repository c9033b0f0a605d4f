"""What `bulk.py` measures: the rows of its records, and the tables of docs/scale.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from stm_fast.benchmarking.records import Record
from stm_fast.benchmarking.report import Table, seconds_text

# ways to share out videos
EQUAL, QUEUE = "torchrun", "--ray"
# of `OverheadRow`
START, FRAME, VIDEO, SKIPPED = "start of a worker", "frame", "video, without its frames", "finished video, skipped"
# the million videos whose costs are estimated
MILLION = 1_000_000
FRAMES = 100
CORES = (10, 100, 1_000)


@dataclass(frozen=True)
class TasksRow:
    """After so many tasks of one driver: seconds since the first one ended, and megabytes of 10^6 bytes."""

    tasks: int
    seconds: float
    driver_mb: float
    head_mb: float  # the process with the tables of the cluster
    nodes_mb: float  # the processes that start workers, of all nodes
    store_bytes: float  # used of the object stores of all nodes


def tasks_table(record: Record[TasksRow]) -> Table:
    head = ["after tasks", "driver", "tables of the head node", "three node processes", "tasks a second"]
    return Table(
        head,
        [
            [
                f"{row.tasks:,}",
                *(f"{size:,.0f} MB" for size in (row.driver_mb, row.head_mb, row.nodes_mb)),
                f"{row.tasks / row.seconds:,.0f}",
            ]
            for row in record.rows
        ],
    )


@dataclass(frozen=True)
class IdleRow:
    """One set of lengths, shared out in one way."""

    lengths: str
    workers: int
    sharing: str
    seed: int
    total: float  # seconds, of all
    longest: float
    seconds: float  # until the last one ended

    @property
    def idle(self) -> float:
        """The share of the workers' time in which they have nothing to do."""
        return 1 - self.total / (self.workers * self.seconds)

    @property
    def of_bound(self) -> float:
        """Relative to the least possible time."""
        return self.seconds / max(self.longest, self.total / self.workers)


def idle_table(record: Record[IdleRow]) -> Table:
    """Medians over the seeds."""
    found: dict[tuple[str, int], dict[str, list[IdleRow]]] = {}
    for row in sorted(record.rows, key=lambda row: row.workers):
        found.setdefault((row.lengths, row.workers), {}).setdefault(row.sharing, []).append(row)
    rows = [
        [lengths, f"{workers}", *(_medians(by_sharing[sharing]) for sharing in (EQUAL, QUEUE))]
        for (lengths, workers), by_sharing in found.items()
    ]
    return Table(["lengths of the videos", "workers", EQUAL, f"`{QUEUE}`"], rows)


def _medians(rows: Sequence[IdleRow]) -> str:
    return f"{100 * median(row.idle for row in rows):.1f} % idle, {median(row.of_bound for row in rows):.2f}"


@dataclass(frozen=True)
class HeldRow:
    """What the driver holds for each of so many videos, and the seconds that it takes for each."""

    what: str
    videos: int
    bytes_each: float
    seconds_each: float


def held_table(record: Record[HeldRow]) -> Table:
    rows = [
        [row.what, f"{row.videos:,}", f"{row.bytes_each:,.0f}", seconds_text(row.seconds_each)] for row in record.rows
    ]
    return Table(["held for a video", "measured with videos", "bytes", "time"], rows)


@dataclass(frozen=True)
class OverheadRow:
    """The median of several rounds."""

    what: str
    rounds: int
    seconds: float
    least: float
    most: float


def overheads_table(record: Record[OverheadRow]) -> Table:
    rows = [
        [row.what, seconds_text(row.seconds), f"{seconds_text(row.least)} to {seconds_text(row.most)}", f"{row.rounds}"]
        for row in record.rows
    ]
    return Table(["", "median", "least to most", "times"], rows)


def costs_table(tasks: Record[TasksRow], overheads: Record[OverheadRow]) -> Table:
    """A million videos on several numbers of cores, from what was measured."""
    seconds = {row.what: row.seconds for row in overheads.rows}
    video = seconds[VIDEO] + FRAMES * seconds[FRAME]
    hours = MILLION * video / 3600
    driver = tasks.rows[-1].seconds / tasks.rows[-1].tasks
    rows = [
        [
            f"{cores:,}",
            f"{hours:,.0f}",
            f"{hours / cores:,.0f} hours",
            f"{MILLION * max(seconds[SKIPPED] / cores, driver) / 60:,.0f} minutes",
            f"{100 * driver * cores / video:.2f} %",
        ]
        for cores in CORES
    ]
    head = ["cores, each a worker", "core-hours", "time", "all finished videos skipped", "of the driver's rate"]
    return Table(head, rows)


@dataclass(frozen=True)
class FilesRow:
    """The files of a result, besides those of every run."""

    result: str
    each_frame: int
    each_video: int


def files_table(record: Record[FilesRow]) -> Table:
    rows = [[f"`{row.result}`", f"{row.each_frame}", f"{row.each_video}"] for row in record.rows]
    return Table(["result", "files for each frame", "files for the video"], rows)


# of each record, by its name
TABLES: dict[str, tuple[type[Any], Callable[[Record[Any]], Table]]] = {
    "tasks": (TasksRow, tasks_table),
    "idle": (IdleRow, idle_table),
    "held": (HeldRow, held_table),
    "overheads": (OverheadRow, overheads_table),
    "files": (FilesRow, files_table),
}
