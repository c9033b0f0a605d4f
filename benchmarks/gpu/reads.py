"""Times of the memory read beside its peers, part after part: one that dies takes no other with it.

python -m gpu.reads RECORD SECONDS PART [PART ...] [--tiny] [--without ROUTE,...] times some parts. Rows are added to
the record after every shape and dtype. A GPU that can no longer be used ends the process with LOST.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu.routes import PACKAGE_ROUTES, TILES
from gpu.session import Session, Stage, why_ended
from gpu.smoke import dangerous
from stm_fast.benchmarking.reads import OUT_OF_TIME, time_routes
from stm_fast.benchmarking.records import ReadRow, Record, describe_machine, read_record
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import OURS, Selection, parse_shape
from stm_fast.benchmarking.tables import Table

LOST = 4
# each one's first call takes seconds of compiling
COMPILED = ("compile", "compile-dynamic", "flex", "flex-32x32", "flex-64x32", "flex-64x64")
FORWARD_ALONE = ("int8", "fp8")
UNCOMPILED = tuple(route for route in ROUTES if route not in (*COMPILED, *FORWARD_ALONE, "cpp", "reference"))
MAIN = ("triton", "triton-channels", "portable")
TARGETS = ("480p-T20-O3", "480p-T20-O1", "480p-T1-O1")
LONGER = ("480p-T5-O1", "480p-T100-O1", "1080p-T20-O1", "480p-T1000-O1")
LARGEST = LONGER[-1]  # too large for a CPU; it launches the kernels of T100
_TINY = ("2x3-T1-O2",)
_GRACE = 5.0  # seconds for the route that was started last
# routes that launch the kernel of a case of the stage "smoke"
_LAUNCHING = {
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


def run(session: Session, stage: Stage, end: float) -> None:
    """Every part that there is time for."""
    path = session.out / f"memory-read-{session.gpu}.json"
    path.unlink(missing_ok=True)
    without = [route for case in dangerous(session.stages.get("smoke")) for route in _LAUNCHING[case]]
    options = [*session.options, *(["--without", ",".join(without)] if without else [])]
    left = list(PARTS)
    while left and time.monotonic() < end:
        child = session.child("gpu.reads", str(path), str(end - time.monotonic()), *left, *options)
        code = child.wait(end + _GRACE)
        if code == 0:
            left = []
        else:
            died = _last_started(left, path)
            stage.lines.append(f"  {died}: {'the GPU was lost' if code == LOST else why_ended(code)}")
            stage.missed.append(died)
            left = left[left.index(died) + 1 :]
    stage.missed += left
    if path.exists():
        rows = read_record(path, ReadRow).rows
        out_of_time = (row for row in rows if row.skipped == OUT_OF_TIME)
        stage.missed += sorted({f"{row.pass_name} {row.dtype} {row.shape} {row.route}" for row in out_of_time})
        stage.lines += lines(rows)
        if without:
            stage.lines.append(f"  not launched, because of what the smoke stage found: {', '.join(without)}")


def _last_started(asked: Sequence[str], path: Path) -> str:
    started = read_record(path, ReadRow).settings["parts"] if path.exists() else {}
    return [part for part in asked if part in started or part == asked[0]][-1]


def lines(rows: Sequence[ReadRow]) -> Iterator[str]:
    """For each pass and dtype: routes by shapes, the fastest first, in microseconds and TFLOP/s.

    With the largest error, and the microseconds that a call takes the host, the least of all shapes.
    """
    products = [row.tflop_per_second for row in rows if row.pass_name == "matrix product" and row.tflop_per_second]
    if products:
        yield f"  torch.mm: {min(products):.0f} to {max(products):.0f} TFLOP/s"
    kinds = dict.fromkeys((row.pass_name, row.dtype) for row in rows if row.pass_name != "matrix product")
    for kind in kinds:
        yield from _table([row for row in rows if (row.pass_name, row.dtype) == kind]).lines()


def _table(rows: Sequence[ReadRow]) -> Table:
    shapes = list(dict.fromkeys(row.shape for row in rows))
    timed: dict[str, dict[str, ReadRow]] = {}
    for row in rows:
        if row.seconds is not None:
            timed.setdefault(row.route, {}).setdefault(row.shape, row)  # a peer may be in two parts
    routes = sorted(timed, key=lambda route: _first_time(timed[route], shapes))
    head = [f"{rows[0].pass_name} {rows[0].dtype}", "error", "host", *shapes]
    cells = [[route, *_cells(timed[route], shapes)] for route in routes]
    skipped = {row.route: row for row in rows if row.skipped and row.skipped != OUT_OF_TIME and row.route not in timed}
    return Table(head, cells, notes=list(_skipped(list(skipped.values()))))


def _first_time(found: dict[str, ReadRow], shapes: Sequence[str]) -> tuple[int, float]:
    """By the time of the first shape that the route has a time for."""
    place = next(index for index, shape in enumerate(shapes) if shape in found)
    return place, found[shapes[place]].seconds or 0.0


def _cells(found: dict[str, ReadRow], shapes: Sequence[str]) -> Iterator[str]:
    yield f"{max((row.error for row in found.values() if row.error), default=math.nan):.0e}"
    yield f"{1e6 * min((row.host_seconds for row in found.values() if row.host_seconds), default=math.nan):.0f}"
    for shape in shapes:
        row = found.get(shape)
        yield "" if row is None else f"{1e6 * (row.seconds or 0):.0f} us {row.tflop_per_second:.0f}"


def _skipped(rows: Sequence[ReadRow]) -> Iterator[str]:
    """A line for each route of the package, one for all others."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.route in OURS or row.route in PACKAGE_ROUTES:
            yield f"  {row.route}: {row.skipped}"
        else:
            reasons.setdefault(str(row.skipped).split(":")[0][:40], []).append(row.route)
    if reasons:
        yield "  none of " + "; ".join(f"{', '.join(routes)} ({reason})" for reason, routes in reasons.items())


# in a process of its own


def main() -> int:
    arguments = _arguments()
    ROUTES.update(PACKAGE_ROUTES)
    end = time.monotonic() + arguments.seconds
    path = arguments.record
    record = read_record(path, ReadRow) if path.exists() else Record[ReadRow](describe_machine("cuda"), {"parts": {}})
    for name in arguments.parts:
        selection = _selection(PARTS[name], arguments, max(0.0, end - time.monotonic()))
        record.settings["parts"][name] = selection.describe()
        record.write(path)  # what was started shows, however it ends
        for rows in time_routes(selection, lambda message: print(message, flush=True)):
            record.rows += rows
            record.write(path)
        if not _usable():
            return LOST
    return 0


def _selection(part: Part, arguments: argparse.Namespace, deadline: float) -> Selection:
    routes = [route for route in part.routes if route not in arguments.without]
    shapes = _TINY if arguments.tiny else part.shapes
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--without", default=(), type=lambda text: text.split(","))
    return parser.parse_args()


def _usable() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
