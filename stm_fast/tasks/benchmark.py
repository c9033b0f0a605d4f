"""stm-fast benchmark: a selection, a table, a JSON file and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.plots import HOW_TO_GET_PLOTS, plots_available, write_plots
from stm_fast.benchmarking.records import Record, write_record
from stm_fast.benchmarking.routes import OURS
from stm_fast.benchmarking.runner import run_benchmark
from stm_fast.benchmarking.selection import Selection
from stm_fast.benchmarking.shapes import CPU_MINUTES, USUAL_SHAPES, Shape, parse_shape
from stm_fast.benchmarking.system_run import run_system, usual_contestants
from stm_fast.benchmarking.system_workload import SystemWorkload
from stm_fast.benchmarking.table import render
from stm_fast.benchmarking.timing import make_clock
from stm_fast.benchmarking.tuning import tune, write_table
from stm_fast.benchmarking.workload import DTYPES
from stm_fast.choices import RouteName
from stm_fast.errors import InputError
from stm_fast.printing import say, warn

_UNCOMPILED = ("published", "last-dim", "chunks", "sdpa")
_ROUTES = {
    "cpu": (*_UNCOMPILED, "sdpa-flash", "sdpa-efficient", "sdpa-flash-split", "compile", "flex", *OURS),
    "cuda": get_args(RouteName),
}
_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
_QUICK_SHAPES, _QUICK_ROUTES = ("480p-T1-O1",), (*_UNCOMPILED, *OURS)
_QUICK_SECONDS, _QUICK_ROUNDS = 2.0, 3
_NARROWEST = 150  # columns, where the output is no terminal


def time_reads(
    *,
    shapes: Sequence[Shape] | None,
    routes: Sequence[str] | None,
    passes: Sequence[str],
    dtypes: Sequence[str] | None,
    device: str,
    threads: int | None,
    seconds: float,
    rounds: int,
    minutes: float | None,
    memory: bool,
    quick: bool,
    output: Path,
    plots: bool | None,
    json: bool,
) -> None:
    """Times memory reads; prints tables, and writes the JSON file and plots.

    Args:
        shapes, routes, dtypes: None for what suits the device.
        minutes: then no further route is started.
        plots: None for plots where matplotlib is there.

    Raises:
        InputError: a device or a library that is not there, or a file that cannot be written.
    """
    place = _place(device, threads)
    if minutes is None and shapes is None and place == "cpu":
        minutes = CPU_MINUTES
    if shapes is None:
        shapes = [parse_shape(name) for name in (_QUICK_SHAPES if quick else USUAL_SHAPES[place])]
    selection = Selection(
        shapes=tuple(shapes),
        dtypes=tuple(DTYPES[name] for name in dtypes or _DTYPES[place]),
        passes=tuple(passes),
        routes=tuple(routes or (_QUICK_ROUTES if quick else _ROUTES[place])),
        device=place,
        seconds=min(seconds, _QUICK_SECONDS) if quick else seconds,
        rounds=min(rounds, _QUICK_ROUNDS) if quick else rounds,
        deadline=None if minutes is None else 60 * minutes,
        memory=memory,
    )
    with_plots = plots_available() if plots is None else plots
    if with_plots and not plots_available():
        raise InputError(HOW_TO_GET_PLOTS)
    record = Record(describe_machine(place), selection.describe())
    write_record(record, output)  # a place that cannot be written to shows before anything is timed
    _introduce(record.machine)
    _run(selection, record, output)
    if with_plots:
        for path in write_plots(record.rows, output.with_suffix("")):
            say(str(path))
    elif plots is None:
        warn(HOW_TO_GET_PLOTS)
    say(str(output))
    if json:
        say(record.to_json())


def time_frames(
    workloads: Sequence[SystemWorkload],
    contestants: Sequence[str] | None,
    *,
    device: str,
    threads: int | None,
    rounds: int,
    memory: bool,
    output: Path,
) -> None:
    """Times whole frames by stage; prints tables, and writes the JSON file.

    Args:
        contestants: None for what suits the device.

    Raises:
        InputError: a device that is not there, weights that do not fit, or a file that cannot be written.
    """
    place = _place(device, threads)
    run_system(workloads, contestants or usual_contestants(place), place, rounds, memory, output)


def tune_tiles(
    path: Path,
    *,
    shapes: Sequence[Shape],
    dtypes: Sequence[str],
    passes: Sequence[str],
    device: str,
    threads: int | None,
) -> None:
    """Times tiles of the Triton kernels, and writes the table of the fastest. Raises InputError without a GPU."""
    place = _place(device, threads)
    if place != "cuda":
        raise InputError(f"--tune: found {place}, expected a CUDA device, whose Triton kernels it times")
    with Console(stderr=True).status("starting") as spinner:
        table = tune(shapes, [DTYPES[name] for name in dtypes], passes, make_clock(place), spinner.update)
    write_table(table, path)
    for tile in table["tiles"]:
        say(f"{tile['kernel']} {tile['choice']['arithmetic']}: {tile['relative_time']:.3f} of the time: {tile['tile']}")
    say(f"{path}: {len(table['tiles'])} tiles; STM_FAST_CONFIGS={path} takes them")


def _place(device: str, threads: int | None) -> str:
    """ "cpu" or "cuda", with the threads set."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: found cuda, but this machine has no CUDA device")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _introduce(machine: dict[str, Any]) -> None:
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cpu_capability']}, {machine['threads']} threads"
    say(f"{where}, torch {machine['torch']}, commit {machine['commit']}")
    load = machine["load_average"][0]
    if load > 1:
        warn(f"this machine is busy (load {load}): compare ratios, not times")


def _run(selection: Selection, record: Record, output: Path) -> None:
    """Times and prints; the file is whole after every shape, so an interrupted run keeps what it has."""
    console, status = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=_NARROWEST)
    with status.status("starting") as spinner:
        for rows in run_benchmark(selection, spinner.update):
            record.rows += rows
            write_record(record, output)
            console.print(render(rows))
