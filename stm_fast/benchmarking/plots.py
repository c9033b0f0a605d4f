"""Log-log plots of memory reads: time and memory against T, all routes."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stm_fast.benchmarking.records import ReadRow
from stm_fast.benchmarking.routes import OURS, ROUTES
from stm_fast.benchmarking.shapes import parse_shape
from stm_fast.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOW_TO_GET_PLOTS = "plots need matplotlib: pip install 'stm_fast[plots]'"
_SIZE = (9.0, 6.0)  # inches
_QUANTITIES: dict[str, tuple[str, Callable[[ReadRow], float | None]]] = {
    "time": ("time of one call, median [ms]", lambda row: None if row.seconds is None else 1e3 * row.seconds),
    # a logarithmic axis has no zero
    "memory": ("extra memory [MB]", lambda row: row.extra_bytes / 1e6 if row.extra_bytes else None),
}


def plots_available() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def write_plots(rows: Sequence[ReadRow], prefix: Path) -> list[Path]:
    """Writes <prefix>.<quantity>.<pass>.<dtype>.<series>.svg for every series of two or more T; returns the paths."""
    series: dict[tuple[str, str, str], list[ReadRow]] = {}
    for row in rows:
        if row.route in ROUTES:
            series.setdefault((row.pass_name, row.dtype, parse_shape(row.shape).series), []).append(row)
    written = []
    for names, members in series.items():
        if len({row.shape for row in members}) < 2:
            continue
        for quantity in _QUANTITIES:
            path = prefix.with_name(".".join((prefix.name, quantity, *names, "svg")))
            if _write_plot(members, quantity, " ".join(names), path):
                written.append(path)
    return written


def _write_plot(rows: Sequence[ReadRow], quantity: str, title: str, path: Path) -> bool:
    """One plot; False where no route has a number to show."""
    from matplotlib.figure import Figure

    label, value_of = _QUANTITIES[quantity]
    lines = {route: _points(rows, route, value_of) for route in ROUTES if any(row.route == route for row in rows)}
    if not any(lines.values()):
        return False
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="memory frames T", ylabel=label, title=title, xscale="log", yscale="log")
    for route, points in lines.items():
        _draw(axes, route, points)
    frames = sorted({parse_shape(row.shape).frames for row in rows})
    axes.set_xticks(frames, [f"{count:g}" for count in frames])
    axes.set_xticks([], minor=True)
    axes.grid(which="both", alpha=0.3)
    figure.legend(loc="outside right upper")
    with whole_file(path) as partial:
        figure.savefig(partial, format="svg")
    return True


def _draw(axes: "Axes", route: str, points: Sequence[tuple[float, float]]) -> None:
    """One route, in the same color and dashes in every plot; one without figures is in the legend too."""
    from matplotlib import colormaps

    index = list(ROUTES).index(route)
    width, dashes = (3.0, "-") if route in OURS else (1.2, ("--", ":", "-.")[index % 3])
    color = colormaps["tab20"](index % 20)
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", color=color, linewidth=width, linestyle=dashes, label=route)
    else:
        axes.plot([], [], linestyle="", label=f"({route}: none)")


def _points(
    rows: Sequence[ReadRow], route: str, value_of: Callable[[ReadRow], float | None]
) -> list[tuple[float, float]]:
    found = ((parse_shape(row.shape).frames, value_of(row)) for row in rows if row.route == route)
    return sorted((frames, value) for frames, value in found if value is not None)
