"""stm-fast benchmark: what the user chooses."""

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

import stm_fast.tasks as tasks
from stm_fast.benchmarking.shapes import CPU_MINUTES, Shape, grid, parse_shape
from stm_fast.benchmarking.system_workload import SystemWorkload, parse_workload
from stm_fast.choices import Contestant, Pass, RouteName, TimedDtype
from stm_fast.commands.numbers import real, whole
from stm_fast.errors import InputError, require_file
from stm_fast.whole_file import refuse_input

_ALL = "all"
_SYSTEM_SHAPES = "480p-T10-O1"
_TUNED_SHAPES = "480p-T5-O1,480p-T20-O3"
_TUNED_DTYPES = ("bfloat16",)


def benchmark(
    shapes: Annotated[
        str | None, typer.Option(help="Such as 480p-T20-O3 (O objects), 8x14-T1-O1, M48-N32400-O1; or all.")
    ] = None,
    routes: Annotated[
        str | None,
        typer.Option(
            help=f"Some of: {', '.join(get_args(RouteName))}; with --system of: {', '.join(get_args(Contestant))}."
        ),
    ] = None,
    passes: Annotated[str, typer.Option(help=f"Some of: {', '.join(get_args(Pass))}.")] = _ALL,
    dtypes: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(get_args(TimedDtype))}.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the reads run.")] = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file; plots go beside it.")] = Path(
        "benchmark.json"
    ),
    plots: Annotated[bool | None, typer.Option(help="Draw log-log plots; the default is where matplotlib is.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure the extra memory.")] = True,
    seconds: Annotated[
        float, typer.Option(**real(0, 86400), help="Seconds for the rounds of one shape and dtype.")
    ] = 10.0,
    rounds: Annotated[int, typer.Option(**whole(1, 10**6), help="How many rounds there are at the least.")] = 5,
    minutes: Annotated[
        float | None,
        typer.Option(
            **real(0, 10**6),
            help=f"After so many minutes no further route is started; {CPU_MINUTES} for a CPU's default shapes.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(**whole(1, 1024), help="How many threads of the CPU are used.")] = None,
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
    if system and tune is not None:
        raise InputError("--tune: found with --system, expected one of them")
    if weights is not None and not system:
        raise InputError(f"--weights: found {weights} without --system, which runs a network")
    if weights is not None:
        require_file(weights, "a checkpoint")
    timed = _chosen("--routes", routes, get_args(Contestant if system else RouteName))
    chosen_passes = _chosen("--passes", passes, get_args(Pass)) or get_args(Pass)
    chosen_dtypes = _chosen("--dtypes", dtypes, get_args(TimedDtype))
    if not overwrite:
        _refuse_results(output, tune)
    if system:
        refuse_input(output, [weights] if weights is not None else [])
        workloads = _workloads(shapes or _SYSTEM_SHAPES, weights)
        tasks.time_frames(workloads, timed, device=device, threads=threads, rounds=rounds, memory=memory, output=output)
    elif tune is not None:
        tuned_shapes = _shapes(shapes or _TUNED_SHAPES)
        tasks.tune_tiles(
            tune,
            shapes=tuned_shapes,
            dtypes=chosen_dtypes or _TUNED_DTYPES,
            passes=chosen_passes,
            device=device,
            threads=threads,
        )
    else:
        timed_shapes = None if shapes is None else _shapes(shapes)
        tasks.time_reads(
            shapes=timed_shapes,
            routes=timed,
            passes=chosen_passes,
            dtypes=chosen_dtypes,
            device=device,
            threads=threads,
            seconds=seconds,
            rounds=rounds,
            minutes=minutes,
            memory=memory,
            quick=quick,
            output=output,
            plots=plots,
            json=json,
        )


def _refuse_results(output: Path, table: Path | None) -> None:
    if table is not None:
        if os.path.lexists(table):
            raise InputError(f"{table}: exists already; give another --tune, or --overwrite")
        return
    plots = (path for path in output.parent.glob("*.svg") if path.name.startswith(f"{output.stem}."))
    for path in (output, *plots):
        if os.path.lexists(path):
            raise InputError(f"{path}: exists already; give another --output, or --overwrite")


def _workloads(text: str, weights: Path | None) -> list[SystemWorkload]:
    return [parse_workload(name.strip(), None if weights is None else str(weights)) for name in text.split(",")]


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(grid()) if text == _ALL else tuple(parse_shape(name.strip()) for name in text.split(","))


def _chosen(option: str, text: str | None, known: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names in a comma-separated list, each once, in the order given; None where there is none."""
    if text is None or text == _ALL:
        return known if text else None
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if name not in known:
            raise InputError(f"{option}: found {name!r}, expected {_ALL} or some of {', '.join(known)}")
    return chosen
