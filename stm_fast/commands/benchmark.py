"""stm-fast benchmark read | frames | tune: their options."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from stm_fast.benchmarking.shapes import CPU_MINUTES, Selection, Shape, grid, parse_shape, parse_workload
from stm_fast.choices import Dtype, Pass, RouteName, Variant
from stm_fast.commands.numbers import real, whole
from stm_fast.commands.options import input_option, output_option, speed_option
from stm_fast.errors import InputError, require_file
from stm_fast.whole_file import refuse_input

_ALL = "all"

_list_option = partial(input_option, metavar="LIST")

Passes = Annotated[str, _list_option(help=f"These passes are timed, some of: {', '.join(get_args(Pass))}.")]
Dtypes = Annotated[
    str | None, _list_option(help=f"These types of numbers are timed, some of: {', '.join(get_args(Dtype))}.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], input_option(help="This device is timed; auto is a GPU if there is one.")
]
Rounds = Annotated[int, speed_option(**whole(1, 10**6), help="There are at least this many rounds.")]
Threads = Annotated[int | None, speed_option(**whole(1, 1024), help="The CPU computes with this many threads.")]
Memory = Annotated[bool, output_option(help="The peak memory is measured.")]
Output = Annotated[Path, output_option("--output", "-o", help="The results are written into this JSON file.")]
Overwrite = Annotated[bool, output_option("--overwrite", help="An existing JSON file and its plots are replaced.")]


def selection(
    shapes: Annotated[
        str | None,
        _list_option(
            help="Reads of these shapes are timed, such as 480p-T20-O3 (20 frames in memory, 3 objects), 8x14-T1-O1 "
            "or M48-N32400-O1; or all."
        ),
    ] = None,
    routes: Annotated[
        str | None,
        _list_option(help=f"These ways to read the memory are timed, some of: {', '.join(get_args(RouteName))}."),
    ] = None,
    passes: Passes = _ALL,
    dtypes: Dtypes = None,
    device: Device = "auto",
    seconds: Annotated[
        float, speed_option(**real(0, 86400), help="The rounds of each shape and type take this many seconds.")
    ] = 10.0,
    rounds: Rounds = 5,
    minutes: Annotated[
        float | None,
        speed_option(
            **real(0, 10**6),
            help=f"No further route is started after this time, by default {CPU_MINUTES} with the CPU's own shapes.",
        ),
    ] = None,
    memory: Memory = True,
    quick: Annotated[
        bool, speed_option("--quick", help="One small shape is timed in few rounds, and nothing is compiled.")
    ] = False,
) -> Selection:
    """The options as a selection. Raises InputError for an unknown name."""
    chosen = Selection(
        routes=_chosen("--routes", routes, get_args(RouteName)),
        passes=_chosen("--passes", passes, get_args(Pass)),
        dtypes=_chosen("--dtypes", dtypes, get_args(Dtype)),
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
        bool | None, output_option(help="Log-log plots are drawn, or not; by default if matplotlib is installed.")
    ] = None,
    json: Annotated[
        bool, output_option("--json", help="At the end, the JSON is printed on one line, for scripts.")
    ] = False,
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
    shapes: Annotated[
        str, _list_option(help="These workloads are timed: 480p-T10-O3 has 10 frames in memory and 3 objects.")
    ] = "480p-T10-O1",
    variants: Annotated[
        str | None,
        _list_option(help=f"These ways to segment a frame are timed, some of: {', '.join(get_args(Variant))}."),
    ] = None,
    weights: Annotated[
        Path | None,
        input_option(help="The network has the weights of this checkpoint; by default random ones, as fast."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Rounds = 5,
    memory: Memory = True,
    output: Output = Path("benchmark.json"),
    overwrite: Overwrite = False,
) -> None:
    """Time whole frames by stage, the engine against the published loop, interleaved; prints tables, writes JSON.

    "J to its masks" compares a variant's masks with those of the first variant, in percent. Lists are comma-separated.
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
    shapes: Annotated[
        str, _list_option(help="Tiles are timed with these shapes, as in 'benchmark read'.")
    ] = "480p-T5-O1,480p-T20-O3",
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
    tuned_dtypes = _chosen("--dtypes", dtypes, get_args(Dtype))
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
