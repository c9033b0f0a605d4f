"""stm-fast benchmark: what the user chooses, turned into a selection, a table, a JSON file and plots."""

import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.plots import HOW_TO_GET_PLOTS, plots_available, write_plots
from stm_fast.benchmarking.records import Record, write_record
from stm_fast.benchmarking.routes import OURS, ROUTES
from stm_fast.benchmarking.runner import run_benchmark
from stm_fast.benchmarking.selection import Selection
from stm_fast.benchmarking.system import CONTESTANTS
from stm_fast.benchmarking.system_run import parse_workload, run_system, usual_contestants
from stm_fast.benchmarking.table import render
from stm_fast.benchmarking.timing import make_clock
from stm_fast.benchmarking.tuning import tune as tune_tiles
from stm_fast.benchmarking.tuning import write_table
from stm_fast.benchmarking.workload import DTYPES, PASSES, Shape, grid, parse_shape
from stm_fast.errors import InputError
from stm_fast.whole_file import refuse_input

_ALL = "all"
# seconds on two CPU cores; a GPU has time for more
_DEFAULT_SHAPES = {
    "cpu": "480p-T1-O1,480p-T5-O1",
    "cuda": "480p-T1-O1,480p-T5-O1,480p-T20-O1,480p-T20-O3,480p-T100-O1,1080p-T20-O1",
}
_UNCOMPILED = ("published", "last-dim", "chunks", "sdpa")
_DEFAULT_ROUTES = {
    "cpu": ",".join((*_UNCOMPILED, "sdpa-flash", "sdpa-efficient", "sdpa-flash-split", "compile", "flex", *OURS)),
    "cuda": _ALL,
}
_DEFAULT_DTYPES = {"cpu": "float32", "cuda": "bfloat16,float32"}
_QUICK_SHAPES = "480p-T1-O1"
_SYSTEM_SHAPES = "480p-T10-O1"
_TUNED_SHAPES = "480p-T5-O1,480p-T20-O3"
_TUNED_DTYPES = "bfloat16"
_QUICK_ROUTES = ",".join((*_UNCOMPILED, *OURS))
_QUICK_SECONDS, _QUICK_ROUNDS = 2.0, 3
_CPU_MINUTES = 2.7  # what starts before this has ended after three
_NARROWEST = 150  # columns, where the output is no terminal


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def benchmark(
    shapes: Annotated[
        str | None, typer.Option(help="Such as 480p-T20-O3 (O objects), 8x14-T1-O1, M48-N32400-O1; or all.")
    ] = None,
    routes: Annotated[
        str | None,
        typer.Option(help=f"Some of: {', '.join(ROUTES)}; with --system of: {', '.join(CONTESTANTS)}."),
    ] = None,
    passes: Annotated[str, typer.Option(help=f"Some of: {', '.join(PASSES)}.")] = _ALL,
    dtypes: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(DTYPES)}.")] = None,
    device: Annotated[Device, typer.Option(help="Where the reads run.")] = Device.AUTO,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file; plots go beside it.")] = Path(
        "benchmark.json"
    ),
    plots: Annotated[bool | None, typer.Option(help="Log-log plots; by default where matplotlib is there.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure the extra memory.")] = True,
    seconds: Annotated[float, typer.Option(min=0, help="Spent on the rounds of one shape and dtype.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="At the least.")] = 5,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help=f"Then no further route is started; {_CPU_MINUTES} for a CPU's default shapes."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    system: Annotated[
        bool,
        typer.Option("--system", help="Whole frames by stage instead: shapes, routes, rounds, memory, device count."),
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="With --system: a checkpoint; else a network drawn from a seed, as fast.")
    ] = None,
    tune: Annotated[
        Path | None,
        typer.Option(
            help="Time tiles of the Triton kernels instead; a table for STM_FAST_CONFIGS goes there. Minutes."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One small shape, nothing compiled, few rounds.")] = False,
    json: Annotated[bool, typer.Option("--json", help="End with the JSON on one line, for scripts.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the JSON file and its plots.")] = False,
) -> None:
    """Time the memory read beside every route PyTorch has, in turns; prints tables, writes JSON and plots.

    Rates count the FLOP of the algorithm; "of mm" is the share of a torch.mm that is timed in the same rounds; "extra"
    is memory beyond inputs and results; "error" is relative to float64. Lists are separated by commas.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = _device(device)
    if system:
        if not overwrite:
            _refuse_results(output)
        refuse_input(output, [weights] if weights is not None else [])
        names = (shapes or _SYSTEM_SHAPES).split(",")
        workloads = [parse_workload(name.strip(), None if weights is None else str(weights)) for name in names]
        contestants = _chosen("--routes", routes or ",".join(usual_contestants(place)), CONTESTANTS)
        run_system(workloads, contestants, place, rounds, memory, output)
        return
    if tune is not None:
        _tune(tune, place, shapes or _TUNED_SHAPES, dtypes or _TUNED_DTYPES, passes, overwrite)
        return
    if minutes is None and shapes is None and place == "cpu":
        minutes = _CPU_MINUTES
    selection = Selection(
        shapes=_shapes(shapes or (_QUICK_SHAPES if quick else _DEFAULT_SHAPES[place])),
        dtypes=tuple(DTYPES[name] for name in _chosen("--dtypes", dtypes or _DEFAULT_DTYPES[place], DTYPES)),
        passes=_chosen("--passes", passes, PASSES),
        routes=_chosen("--routes", routes or (_QUICK_ROUTES if quick else _DEFAULT_ROUTES[place]), ROUTES),
        device=place,
        seconds=min(seconds, _QUICK_SECONDS) if quick else seconds,
        rounds=min(rounds, _QUICK_ROUNDS) if quick else rounds,
        deadline=None if minutes is None else 60 * minutes,
        memory=memory,
    )
    with_plots = plots_available() if plots is None else plots
    if with_plots and not plots_available():
        raise InputError(HOW_TO_GET_PLOTS)
    if not overwrite:
        _refuse_results(output)
    record = Record(describe_machine(place), selection.describe())
    write_record(record, output)  # a place that cannot be written to shows before anything is timed
    _introduce(record.machine)
    _run(selection, record, output)
    if with_plots:
        for path in write_plots(record.rows, output.with_suffix("")):
            print(path)
    elif plots is None:
        print(f"stm-fast: {HOW_TO_GET_PLOTS}", file=sys.stderr)
    print(output)
    if json:
        print(record.to_json())


def _tune(path: Path, place: str, shapes: str, dtypes: str, passes: str, overwrite: bool) -> None:
    if place != "cuda":
        raise InputError(f"--tune: found {place}, expected a CUDA device, whose Triton kernels it times")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give another --tune, or --overwrite")
    chosen = [DTYPES[name] for name in _chosen("--dtypes", dtypes, DTYPES)]
    with Console(stderr=True).status("starting") as spinner:
        table = tune_tiles(
            _shapes(shapes), chosen, _chosen("--passes", passes, PASSES), make_clock(place), spinner.update
        )
    write_table(table, path)
    for tile in table["tiles"]:
        print(
            f"{tile['kernel']} {tile['choice']['arithmetic']}: {tile['relative_time']:.3f} of the time: {tile['tile']}"
        )
    print(f"{path}: {len(table['tiles'])} tiles; STM_FAST_CONFIGS={path} takes them")


def _refuse_results(output: Path) -> None:
    plots = (path for path in output.parent.glob("*.svg") if path.name.startswith(f"{output.stem}."))
    for path in (output, *plots):
        if path.exists():
            raise InputError(f"{path}: exists already; give another --output, or --overwrite")


def _introduce(machine: dict[str, Any]) -> None:
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cpu_capability']}, {machine['threads']} threads"
    print(f"{where}, torch {machine['torch']}, commit {machine['commit']}")
    load = machine["load_average"][0]
    if load > 1:
        print(f"stm-fast: this machine is busy (load {load}): compare ratios, not times", file=sys.stderr)


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


def _device(device: Device) -> str:
    if device is Device.CUDA and not torch.cuda.is_available():
        raise InputError("--device: found cuda, but this machine has no CUDA device")
    if device is Device.AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device.value


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(grid()) if text == _ALL else tuple(parse_shape(name.strip()) for name in text.split(","))


def _chosen(option: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """The names in a comma-separated list, each once, in the order given."""
    names = tuple(known)
    if text == _ALL:
        return names
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if name not in names:
            raise InputError(f"{option}: found {name!r}, expected {_ALL} or some of {', '.join(names)}")
    return chosen
