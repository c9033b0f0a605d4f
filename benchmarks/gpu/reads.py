"""Times of the memory read beside its peers, part after part: one that dies takes no other with it."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gpu.contestants import TILES, contestants
from gpu.reads_child import LOST, PARTS
from gpu.session import Session, Stage
from gpu.smoke import dangerous
from stm_fast.benchmarking import Row, read_record
from stm_fast.benchmarking.routes import OURS

# routes that launch the kernel of a case of the stage "smoke"
_LAUNCHING = {
    "rows": ("triton", "triton-channels", "triton-bank", "triton-graph"),
    "portable": (*TILES, "portable-graph"),
    "channels": ("triton-channels",),
    "int8": ("int8",),
    "fp8": ("fp8",),
}
_OUT_OF_TIME = "out of time"


def run(session: Session, stage: Stage, end: float) -> None:
    """Every part that there is time for."""
    path = session.out / f"memory-read-{session.gpu}.json"
    path.unlink(missing_ok=True)
    without = [route for case in dangerous(session.stages.get("smoke")) for route in _LAUNCHING[case]]
    options = [*session.options, *(["--without", ",".join(without)] if without else [])]
    left = list(PARTS)
    while left and time.monotonic() < end:
        child = session.child("gpu.reads_child", str(path), str(end - time.monotonic()), *left, *options)
        code = child.wait(end + _GRACE)
        started = _parts(path)
        if code == 0:
            left = []
        else:
            died = _last(left, started)
            stage.lines.append(f"  {died}: {_ended(code)}")
            stage.missed.append(died)
            left = left[left.index(died) + 1 :]
    stage.missed += left
    if path.exists():
        record = read_record(path)
        stage.missed += sorted({_name(row) for row in record.rows if row.refused == _OUT_OF_TIME})
        stage.lines += tables(record.rows)
        if without:
            stage.lines.append(f"  not launched, by what the smoke stage found: {', '.join(without)}")


_GRACE = 5.0  # for the route that was started last


def _parts(path: Path) -> list[str]:
    return list(read_record(path).settings["parts"]) if path.exists() else []


def _last(asked: Sequence[str], started: Sequence[str]) -> str:
    return [part for part in asked if part in started or part == asked[0]][-1]


def _ended(code: int | None) -> str:
    if code is None:
        return "stopped, out of time"
    return "the GPU could not be used any more" if code == LOST else f"ended with exit code {code}: see the log"


def _name(row: Row) -> str:
    return f"{row.pass_name} {row.dtype} {row.shape} {row.route}"


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """For each pass and dtype: routes down, shapes across, microseconds and TFLOP/s, the fastest first.

    With the largest error, and the microseconds that a call takes the host, the least of all shapes.
    """
    products = [row.tflop_per_second for row in rows if row.pass_name == "matrix product" and row.tflop_per_second]
    if products:
        yield f"  torch.mm: {min(products):.0f} to {max(products):.0f} TFLOP/s"
    kinds = dict.fromkeys((row.pass_name, row.dtype) for row in rows if row.pass_name != "matrix product")
    for pass_name, dtype in kinds:
        yield from _table([row for row in rows if (row.pass_name, row.dtype) == (pass_name, dtype)])


def _table(rows: Sequence[Row]) -> Iterator[str]:
    shapes = list(dict.fromkeys(row.shape for row in rows))
    timed: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.seconds is not None:
            timed.setdefault((row.route, row.shape), row)  # a peer may take part in two parts
    routes = sorted({route for route, _ in timed}, key=lambda route: _first_time(route, shapes, timed))
    head = f"{rows[0].pass_name} {rows[0].dtype}"
    yield f"  {head:<20}{'error':<8}{'host':>6}" + "".join(f"{name:>15}" for name in shapes)
    for route in routes:
        of_route = [row for (name, _shape), row in timed.items() if name == route]
        error = max((row.error for row in of_route if row.error), default=math.nan)
        host = 1e6 * min((row.host_seconds for row in of_route if row.host_seconds), default=math.nan)
        cells = (_cell(timed.get((route, shape))) for shape in shapes)
        yield f"  {route:<20}{error:<8.0e}{host:>6.0f}" + "".join(f"{cell:>15}" for cell in cells)
    told = {row.route: row for row in rows if row.refused and row.refused != _OUT_OF_TIME and row.route not in routes}
    yield from _refusals(told.values())


def _first_time(route: str, shapes: Sequence[str], timed: dict[tuple[str, str], Row]) -> tuple[int, float]:
    """By the time of the first shape that the route has a time for."""
    place = next(index for index, shape in enumerate(shapes) if (route, shape) in timed)
    return place, timed[route, shapes[place]].seconds or 0.0


def _cell(row: Row | None) -> str:
    if row is None or row.seconds is None:
        return ""
    return f"{1e6 * row.seconds:.0f} us {row.tflop_per_second:.0f}"


def _refusals(refused: Iterable[Row]) -> Iterator[str]:
    """A line for each route of our own, one for all of the others."""
    reasons: dict[str, dict[str, None]] = {}
    for row in refused:
        if row.route in OURS or row.route in contestants():
            yield f"  {row.route:<20}{row.refused}"
        else:
            reasons.setdefault(str(row.refused).split(":")[0][:40], {})[row.route] = None
    if reasons:
        yield "  none of " + "; ".join(f"{', '.join(routes)} ({reason})" for reason, routes in reasons.items())
