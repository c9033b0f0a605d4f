"""The timed stages of make gpu: memory reads compared with their peers, and whole frames, in separate processes.

    python -m gpu_times reads RECORD SECONDS PART [PART ...] [--tiny] [--compile-only] [--without ROUTE,...]
    python -m gpu_times frames RECORD SHAPES VARIANTS ROUNDS

are these processes. Rows are added to the record after every shape and dtype. A GPU that can no longer be used ends the
process with LOST. Beside the routes of the package's benchmark there are more of stm_fast's own: other layouts, the
bank, CUDA graphs, tiles.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stm_fast.benchmarking.reads import OUT_OF_TIME, time_routes
from stm_fast.benchmarking.records import FrameRow, ReadRow, Record, describe_machine, read_record
from stm_fast.benchmarking.report import by_workload, route_table, stage_table
from stm_fast.benchmarking.routes import ROUTES, Route
from stm_fast.benchmarking.shapes import Selection, parse_shape, parse_workload
from stm_fast.benchmarking.tuning import choice_of, default_tile
from stm_fast.benchmarking.workload import Read, Workload
from stm_fast.kernels.tuned import Tiles, using
from stm_fast.memory import MemoryBank
from stm_fast.tasks import benchmark

if TYPE_CHECKING:
    from gpu_checks import Session, Stage

LOST = 4  # an exit code
_GRACE = 5.0  # seconds for the route that was started last

# more routes of the package

# routes of the portable kernel, which also reads on sm_90 where it is given a tile, with the fields of the tile that
# differ from configs.py
TILES: dict[str, dict[str, int]] = {
    "portable": {},
    "portable-2-stages": {"num_stages": 2},
    "portable-4-stages": {"num_stages": 4},
}


def portable_tile(dtype: torch.dtype, fields: dict[str, int]) -> Tiles:
    """A table with the tile of configs.py at the published widths, some fields replaced."""
    choice = choice_of(dtype, "cuda")
    return {("forward", choice): replace(default_tile("forward", choice), **fields)}


def _with_tile(fields: dict[str, int], workload: Workload) -> Read | str:
    tiles, read = portable_tile(workload.dtype, fields), ROUTES["triton"].build(workload)
    if isinstance(read, str):
        return read

    def read_with_tile(query: Tensor, *memory: Tensor) -> Tensor:
        with using(tiles):
            return read(query, *memory)

    return read_with_tile


def _from_bank(workload: Workload) -> Read:
    """The read of a bank with the memory, frame by frame; it is filled when the memory is first seen."""
    banks: dict[int, MemoryBank] = {}

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if key.data_ptr() not in banks:
            banks[key.data_ptr()] = _bank(key, value, workload.shape.queries)
        column = query.mT[..., None]  # [1, Ck, M, 1], a feature map of one column
        return banks[key.data_ptr()].read(column).flatten(2).mT

    return read


def _bank(key: Tensor, value: Tensor, rows: int) -> MemoryBank:
    bank = MemoryBank(frames=key.shape[1] // rows, backend="triton")
    for first in range(0, key.shape[1] - rows + 1, rows):
        bank.append(*(tensor[:, first : first + rows].mT[..., None] for tensor in (key, value)))
    return bank


def _replayed(route: Route, workload: Workload) -> Read | str:
    """The read as a CUDA graph, recorded when its inputs are first seen: what is left of a call without the host."""
    read = route.build(workload)
    if isinstance(read, str):
        return read
    recorded: dict[int, tuple[Callable[[], None], Tensor]] = {}

    def replayed(query: Tensor, *memory: Tensor) -> Tensor:
        if query.data_ptr() not in recorded:
            recorded[query.data_ptr()] = _record(read, query, *memory)
        replay, out = recorded[query.data_ptr()]
        replay()
        return out

    return replayed


def _record(read: Read, *inputs: Tensor) -> tuple[Callable[[], None], Tensor]:
    """What replays the graph of a read, and the result that it writes to."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            read(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = read(*inputs)
    return graph.replay, out


_TRITON = ROUTES["triton"]
_FORWARD = replace(_TRITON, passes=("forward",))
_TILED = [
    replace(
        _FORWARD,
        name=name,
        what=f"stm_fast, the portable kernel, {fields or 'its tile'}",
        make=partial(_with_tile, fields),
    )
    for name, fields in TILES.items()
]
_ROUTES = (
    replace(_TRITON, name="triton-channels", what="stm_fast, all three tensors channels first", layout="channels"),
    replace(_FORWARD, name="triton-bank", what="stm_fast, MemoryBank.read", make=_from_bank),
    *_TILED,
    *(
        replace(_FORWARD, name=f"{route.name}-graph", what="stm_fast, replayed", make=partial(_replayed, route))
        for route in (_TRITON, _TILED[0])
    ),
)
PACKAGE_ROUTES = {route.name: route for route in _ROUTES}


# memory reads

# each one's first call takes seconds of compiling
COMPILED = ("compile", "compile-dynamic", "flex", "flex-32x32", "flex-64x32", "flex-64x64")
FORWARD_ALONE = ("int8", "fp8")
UNCOMPILED = tuple(route for route in ROUTES if route not in (*COMPILED, *FORWARD_ALONE, "cpp", "reference"))
MAIN = ("triton", "triton-channels", "portable")
TARGETS = ("480p-T20-O3", "480p-T20-O1", "480p-T1-O1")
LONGER = ("480p-T5-O1", "480p-T100-O1", "1080p-T20-O1", "480p-T1000-O1")
LARGEST = LONGER[-1]  # too large for a CPU; it launches the kernels of T100
TINY_SHAPES = ("2x3-T1-O2",)
# routes that launch the kernel of a case of the stage "smoke"
LAUNCHING = {
    "rows": ("triton", "triton-channels", "triton-bank", "triton-graph"),
    "portable": (*TILES, "portable-graph"),
    "channels": ("triton-channels",),
    "int8": ("int8",),
    "fp8": ("fp8",),
}


@dataclass(frozen=True)
class Part:
    """What is timed in the same rounds, for `seconds` a shape and dtype."""

    shapes: tuple[str, ...]
    passes: tuple[str, ...]
    routes: tuple[str, ...]
    dtypes: tuple[str, ...] = ("bfloat16",)
    seconds: float = 4.0


# what is asked first is timed first
PARTS = {
    "forward": Part(TARGETS, ("forward",), (*UNCOMPILED, *FORWARD_ALONE, *PACKAGE_ROUTES)),
    "backward": Part(TARGETS[:2], ("backward",), (*UNCOMPILED, "triton-channels")),
    "top-k": Part(TARGETS[:2], ("top-k",), (*UNCOMPILED, "triton-channels"), seconds=2.0),
    "longer": Part(LONGER, ("forward",), ("published", "sdpa-efficient", *MAIN, *FORWARD_ALONE), seconds=2.0),
    "other dtypes": Part(
        TARGETS[1:2],
        ("forward", "backward"),
        ("published", "published-tf32", "sdpa-efficient", *MAIN),
        ("float16", "float32"),
        seconds=2.0,
    ),
    "compiled": Part(TARGETS[:1], ("forward",), ("published", "triton", *COMPILED), seconds=2.0),
}
# one read, for ncu
PROFILED = {route: Part(TARGETS[:1], ("forward",), (route,), seconds=0.0) for route in ("triton", "portable")}


def run_reads(session: "Session", stage: "Stage", end: float) -> None:
    """Every part that there is time for: one that dies takes no other with it."""
    ROUTES.update(PACKAGE_ROUTES)
    path = session.out / f"memory-read-{session.gpu}.json"
    path.unlink(missing_ok=True)
    without = list(dict.fromkeys(route for case in session.hung_kernels() for route in LAUNCHING[case]))
    options = [*session.options, *(["--without", ",".join(without)] if without else [])]
    left = list(PARTS)
    while left and time.monotonic() < end:
        arguments = ("reads", str(path), str(end - time.monotonic()), *left, *options)
        code = session.run([sys.executable, "-m", "gpu_times", *arguments], end + _GRACE)
        if code == 0:
            left = []
        else:
            started = read_record(path, ReadRow).settings["parts"] if path.exists() else {}
            died = [part for part in left if part in started or part == left[0]][-1]
            stage.lines.append(f"  {died}: {'the GPU was lost' if code == LOST else session.why_ended(code)}")
            stage.missed.append(died)
            left = left[left.index(died) + 1 :]
    stage.missed += left
    if path.exists():
        rows = read_record(path, ReadRow).rows
        stage.missed += sorted({f"{_kind(row)} {row.shape} {row.route}" for row in rows if row.skipped == OUT_OF_TIME})
        stage.lines += read_lines(rows)
    if without:
        stage.lines.append(f"  not launched, because they hung in the smoke stage: {', '.join(without)}")


def read_lines(rows: Sequence[ReadRow]) -> Iterator[str]:
    """A table for each pass and dtype, and below them why a route of the package was not timed."""
    for dtype, pass_name in dict.fromkeys((row.dtype, row.pass_name) for row in rows if row.route in ROUTES):
        yield from replace(route_table(rows, dtype, pass_name), notes=()).lines()
    for row in rows:
        if row.skipped not in (None, OUT_OF_TIME) and row.route in ("triton", *FORWARD_ALONE, *PACKAGE_ROUTES):
            yield f"  {_kind(row)} {row.shape}: no {row.route}: {row.skipped}"


def _kind(row: ReadRow) -> str:
    return f"{row.pass_name} {row.dtype}"


def time_parts(arguments: argparse.Namespace) -> int:
    """The process of some parts: their rows, as far as there is time."""
    ROUTES.update(PACKAGE_ROUTES)
    end = time.monotonic() + arguments.seconds
    path = arguments.record
    record = read_record(path, ReadRow) if path.exists() else Record[ReadRow](describe_machine("cuda"), {"parts": {}})
    for name in arguments.parts:
        selection = _selection((PARTS | PROFILED)[name], arguments, max(0.0, end - time.monotonic()))
        record.settings["parts"][name] = selection.describe()
        record.write(path)  # what was started shows, however it ends
        for rows in time_routes(selection, lambda message: print(message, flush=True)):
            record.rows += rows
            record.write(path)
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return LOST
    return 0


def _selection(part: Part, arguments: argparse.Namespace, deadline: float) -> Selection:
    routes = [route for route in part.routes if route not in arguments.without]
    shapes = TINY_SHAPES if arguments.tiny else part.shapes
    if arguments.compile_only:
        routes = [route for route in routes if route in (*FORWARD_ALONE, "triton", *PACKAGE_ROUTES)]
        shapes = tuple(shape for shape in shapes if shape != LARGEST)
    quick = arguments.tiny or arguments.compile_only
    return Selection(
        shapes=tuple(map(parse_shape, shapes)),
        dtypes=part.dtypes,
        passes=part.passes,
        routes=tuple(routes),
        device="cuda",
        seconds=0.0 if quick else part.seconds,
        rounds=1 if quick else 5,
        product=64 if quick else None,
        deadline=deadline,
    )


# whole frames


@dataclass(frozen=True)
class Frames:
    """What is timed in the same rounds; masks are compared with those of the first variant."""

    shapes: tuple[str, ...]
    variants: tuple[str, ...]
    rounds: int = 15


# what is asked first is timed first; the compiled ones take long until their first frame
FRAMES = {
    "network": Frames(("480p-T20-O1", "480p-T20-O3"), ("published", "prepared", "bfloat16", "float16")),
    "network-compiled": Frames(("480p-T20-O1",), ("published", "bfloat16", "bfloat16-graphs")),
}
TINY_FRAMES = {"network": Frames(("64p-T1-O1",), ("published", "prepared", "bfloat16"), rounds=1)}


def run_frames(session: "Session", stage: "Stage", end: float) -> None:
    """Whole frames by stage, the engine compared with the published loop, as far as there is time."""
    runs = TINY_FRAMES if session.tiny else FRAMES
    if session.compile_only:  # what launches kernels of the package
        runs = {"network": replace(FRAMES["network"], variants=FRAMES["network"].variants[1:], rounds=1)}
    for name, wanted in runs.items():
        path = session.out / f"{name}-{session.gpu}.json"
        path.unlink(missing_ok=True)
        arguments = (str(path), ",".join(wanted.shapes), ",".join(wanted.variants), str(wanted.rounds))
        code = session.run([sys.executable, "-m", "gpu_times", "frames", *arguments], end)
        rows = read_record(path, FrameRow).rows if path.exists() else []
        for group in by_workload(rows):
            table = stage_table(group, ("frame", "J to its masks, %"))
            stage.lines += replace(table, notes=()).transposed().lines()
        if code != 0:
            stage.lines.append(f"  {name}: {session.why_ended(code)}")
            timed = {(row.workload.name, row.variant) for row in rows}
            pairs = [(shape, variant) for shape in wanted.shapes for variant in wanted.variants]
            stage.missed += [" ".join(pair) for pair in pairs if pair not in timed]
            stage.state = "out of time" if code is None else stage.state


def time_frames(arguments: argparse.Namespace) -> None:
    """The process of some whole frames. It is not the command line, since such a machine may lack typer."""
    benchmark.time_frames(
        [parse_workload(name) for name in arguments.shapes.split(",")],
        arguments.variants.split(","),
        device="cuda",
        threads=None,
        rounds=arguments.rounds,
        memory=False,
        output=arguments.record,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    reads, frames = commands.add_parser("reads"), commands.add_parser("frames")
    for command, call in ((reads, time_parts), (frames, time_frames)):
        command.set_defaults(call=call)
        command.add_argument("record", type=Path)
    reads.add_argument("seconds", type=float)
    reads.add_argument("parts", nargs="+", choices=PARTS | PROFILED)
    reads.add_argument("--tiny", action="store_true")
    reads.add_argument("--compile-only", action="store_true")
    reads.add_argument("--without", default=(), type=lambda text: text.split(","))
    for name, kind in (("shapes", str), ("variants", str), ("rounds", int)):
        frames.add_argument(name, type=kind)
    arguments = parser.parse_args()
    return arguments.call(arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
