"""stm-fast benchmark: times reads, whole frames or tiles; prints tables, and writes records and plots."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stm_fast.benchmarking.frames import time_variants, usual_variants
from stm_fast.benchmarking.measuring import make_clock
from stm_fast.benchmarking.reads import time_routes
from stm_fast.benchmarking.records import FrameRow, ReadRow, Record, describe_machine
from stm_fast.benchmarking.report import how_to_get_plots, plots_available, read_table, stage_table, write_plots
from stm_fast.benchmarking.shapes import FrameWorkload, Selection, Shape
from stm_fast.benchmarking.tuning import tune
from stm_fast.benchmarking.workload import DTYPES
from stm_fast.errors import InputError, option
from stm_fast.printing import say, warn


def time_reads(selection: Selection, *, threads: int | None, output: Path, plots: bool | None, json: bool) -> None:
    """Times memory reads; prints tables, and writes the JSON file and plots.

    Args:
        selection: completed with defaults for the device.
        plots: None for plots if matplotlib is installed.

    Raises:
        InputError: a missing device or library, or a file that cannot be written.
    """
    selection = selection.complete(_place(selection.device, threads))
    if plots and not plots_available():
        raise InputError(how_to_get_plots())
    record = Record[ReadRow](describe_machine(selection.device), selection.describe())
    record.write(output)  # fails before anything is timed if the file cannot be written
    _introduce(record.machine)
    with _status() as report:
        for rows in time_routes(selection, report):
            _add(record, rows, output)
            say(*read_table(rows).lines())
    _write_plots(record.rows, output, plots)
    say(str(output))
    if json:
        say(record.to_json())


def time_frames(
    workloads: Sequence[FrameWorkload],
    variants: Sequence[str],
    *,
    device: str,
    threads: int | None,
    rounds: int,
    memory: bool,
    output: Path,
) -> None:
    """Times whole frames by stage; prints tables, and writes the JSON file.

    Args:
        variants: if empty, those that suit the device.

    Raises:
        InputError: a missing device, weights that do not fit, or a file that cannot be written.
    """
    place = _place(device, threads)
    variants = variants or usual_variants(place)
    settings = {"shapes": [workload.name for workload in workloads], "variants": list(variants), "rounds": rounds}
    record = Record[FrameRow](describe_machine(place), settings | {"device": place, "memory": memory})
    record.write(output)  # fails before anything is timed if the file cannot be written
    for workload in workloads:
        rows = time_variants(workload, variants, rounds, place, peaks=memory)
        _add(record, rows, output)
        say("", *stage_table(rows).lines())


def tune_tiles(
    *,
    shapes: Sequence[Shape],
    dtypes: Sequence[str],
    passes: Sequence[str],
    device: str,
    threads: int | None,
    output: Path,
) -> None:
    """Times tiles of the Triton kernels and writes the fastest ones. Raises InputError without a GPU."""
    place = _place(device, threads)
    if place != "cuda":
        raise InputError(f"{option('device')}: found {place}, expected a CUDA device, because Triton kernels are timed")
    with _status() as report:
        record = tune(shapes, [DTYPES[name] for name in dtypes], passes, make_clock(place), report)
    record.write(output)
    for row in record.rows:
        say(f"{row.kernel} {row.choice['arithmetic']}: {row.relative_time:.3f} of the time: {row.tile}")
    say(f"{output}: {len(record.rows)} tiles; STM_FAST_CONFIGS={output} uses them")


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Shows on stderr, in one line, what is being timed."""
    from rich.console import Console  # only here: make gpu times whole frames on machines that may lack it

    with Console(stderr=True).status("starting") as spinner:
        yield spinner.update


def _place(device: str, threads: int | None) -> str:
    """Sets the number of threads; returns "cpu" or "cuda"."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{option('device')}: found cuda, but this machine has no CUDA device")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _introduce(machine: dict[str, Any]) -> None:
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cpu_capability']}, {machine['threads']} threads"
    say(f"{where}, torch {machine['torch']}, commit {machine['commit']}")
    load = machine["load_average"][0]
    if load > 1:
        warn(f"this machine is busy (load {load}): compare ratios, not times")


def _add(record: Record[Any], rows: Sequence[Any], output: Path) -> None:
    """Adds rows and rewrites the file, so that an interrupted run keeps its results so far."""
    record.rows += rows
    record.write(output)


def _write_plots(rows: Sequence[ReadRow], output: Path, plots: bool | None) -> None:
    if plots or (plots is None and plots_available()):
        say(*map(str, write_plots(rows, output.with_suffix(""))))
    elif plots is None:
        warn(how_to_get_plots())
