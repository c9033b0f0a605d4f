"""stm-fast benchmark read | frames | tune: their options."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from stm_fast.benchmarking.shapes import CPU_MINUTES, Selection, Shape, grid, parse_shape, parse_workload
from stm_fast.choices import Pass, RouteName, TimedDtype, Variant
from stm_fast.commands.numbers import real, whole
from stm_fast.errors import InputError, require_file
from stm_fast.whole_file import refuse_input

_ALL = "all"

Passes = Annotated[str, typer.Option(help=f"Some of: {', '.join(get_args(Pass))}.")]
Dtypes = Annotated[str | None, typer.Option(help=f"Some of: {', '.join(get_args(TimedDtype))}.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="The device to time.")]
Rounds = Annotated[int, typer.Option(**whole(1, 10**6), help="Minimum number of rounds.")]
Threads = Annotated[int | None, typer.Option(**whole(1, 1024), help="Number of CPU threads.")]
Memory = Annotated[bool, typer.Option(help="Measure peak memory.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the JSON file and its plots.")]


def selection(
    shapes: Annotated[
        str | None, typer.Option(help="For example 480p-T20-O3 (O objects), 8x14-T1-O1, M48-N32400-O1; or all.")
    ] = None,
    routes: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(get_args(RouteName))}.")] = None,
    passes: Passes = _ALL,
    dtypes: Dtypes = None,
    device: Device = "auto",
    seconds: Annotated[
        float, typer.Option(**real(0, 86400), help="Time for the rounds of each shape and dtype.")
    ] = 10.0,
    rounds: Rounds = 5,
    minutes: Annotated[
        float | None,
        typer.Option(
            **real(0, 10**6),
            help=f"Start no further route after this time; by default {CPU_MINUTES} for the CPU's default shapes.",
        ),
    ] = None,
    memory: Memory = True,
    quick: Annotated[bool, typer.Option("--quick", help="One small shape, few rounds, and nothing compiled.")] = False,
) -> Selection:
    """The options as a selection. Raises InputError for an unknown name."""
    chosen = Selection(
        routes=_chosen("--routes", routes, get_args(RouteName)),
        passes=_chosen("--passes", passes, get_args(Pass)),
        dtypes=_chosen("--dtypes", dtypes, get_args(TimedDtype)),
        shapes=() if shapes is None else _shapes(shapes),
        device=device,
        seconds=seconds,
        rounds=rounds,
        deadline=None if minutes is None else 60 * minutes,
        memory=memory,
    )
    return chosen.quick() if quick else chosen


def read(
    selection: Annotated[Selection, selection],
    threads: Threads = None,
    plots: Annotated[
        bool | None, typer.Option(help="Draw log-log plots; by default if matplotlib is installed.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="At the end, print the JSON on one line, for scripts.")] = False,
    output: Output = Path("benchmark.json"),
    overwrite: Overwrite = False,
) -> None:
    """Time the memory read against the alternatives in PyTorch; prints tables, writes JSON and plots.

    All are interleaved. Rates count the FLOP of the algorithm; "of mm" is relative to a torch.mm timed in the same
    rounds; "extra" is memory beyond inputs and results; "error" is relative to float64. Lists are comma-separated.
    """
    if not overwrite:
        plotted = (path for path in output.parent.glob("*.svg") if path.name.startswith(f"{output.stem}."))
        _refuse_existing(output, *plotted)
    from stm_fast.tasks.benchmark import time_reads

    time_reads(selection, threads=threads, output=output, plots=plots, json=json)


def frames(
    shapes: Annotated[str, typer.Option(help="As in 480p-T10-O3: T frames in memory, O objects.")] = "480p-T10-O1",
    variants: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(get_args(Variant))}.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A checkpoint; by default random weights, which take the same time.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Rounds = 5,
    memory: Memory = True,
    output: Output = Path("benchmark.json"),
    overwrite: Overwrite = False,
) -> None:
    """Time whole frames by stage, the engine against the published loop, interleaved; prints tables, writes JSON.

    "J to its masks" compares a variant's masks with those of the first variant. Lists are comma-separated.
    """
    if weights is not None:
        require_file(weights, "a checkpoint")
    timed = _chosen("--variants", variants, get_args(Variant))
    if not overwrite:
        _refuse_existing(output)
    refuse_input(output, [weights] if weights is not None else [])
    checkpoint = None if weights is None else str(weights)
    workloads = [parse_workload(name, checkpoint) for name in _names(shapes)]
    from stm_fast.tasks.benchmark import time_frames

    time_frames(workloads, timed, device=device, threads=threads, rounds=rounds, memory=memory, output=output)


def tune(
    shapes: Annotated[str, typer.Option(help="As for benchmark read.")] = "480p-T5-O1,480p-T20-O3",
    passes: Passes = _ALL,
    dtypes: Dtypes = "bfloat16",
    device: Device = "auto",
    threads: Threads = None,
    output: Output = Path("tiles.json"),
    overwrite: Overwrite = False,
) -> None:
    """Time tiles of the Triton kernels on this GPU, which takes minutes, and write the fastest ones as JSON.

    Set STM_FAST_CONFIGS to the file to use them. Lists are comma-separated.
    """
    tuned_passes = _chosen("--passes", passes, get_args(Pass))
    tuned_dtypes = _chosen("--dtypes", dtypes, get_args(TimedDtype))
    tuned_shapes = _shapes(shapes)
    if not overwrite:
        _refuse_existing(output)
    from stm_fast.tasks.benchmark import tune_tiles

    tune_tiles(
        shapes=tuned_shapes, dtypes=tuned_dtypes, passes=tuned_passes, device=device, threads=threads, output=output
    )


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise InputError(f"{path}: exists already; give another --output, or --overwrite")


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(grid()) if text == _ALL else tuple(map(parse_shape, _names(text)))


def _names(text: str) -> Iterable[str]:
    return (name.strip() for name in text.split(","))


def _chosen(option: str, text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The distinct names in a comma-separated list, in order; empty without a list."""
    if text is None:
        return ()
    if text == _ALL:
        return known
    chosen = tuple(dict.fromkeys(_names(text)))
    for name in chosen:
        if name not in known:
            raise InputError(f"{option}: found {name!r}, expected {_ALL} or some of {', '.join(known)}")
    return chosen
