"""Log-log plots of memory reads: time and memory against T, all routes."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stm_fast.benchmarking.records import ReadRow
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import OURS, parse_shape
from stm_fast.whole_file import whole_file

HOW_TO_GET_PLOTS = "plots need matplotlib: pip install 'stm_fast[plots]'"
Quantity = Callable[[ReadRow], float | None]
_SIZE = (9.0, 6.0)  # inches
_QUANTITIES: dict[str, tuple[str, Quantity]] = {
    "time": ("time of one call, median [ms]", lambda row: None if row.seconds is None else 1e3 * row.seconds),
    # a logarithmic axis has no zero
    "memory": ("extra memory [MB]", lambda row: row.extra_bytes / 1e6 if row.extra_bytes else None),
}


def plots_available() -> bool:
    """Whether matplotlib is installed."""
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
        for quantity, (label, value_of) in _QUANTITIES.items():
            path = prefix.with_name(".".join((prefix.name, quantity, *names, "svg")))
            if any(value_of(row) is not None for row in members):
                _write_plot(members, label, value_of, " ".join(names), path)
                written.append(path)
    return written


def _write_plot(rows: Sequence[ReadRow], label: str, value_of: Quantity, title: str, path: Path) -> None:
    """All routes, each in the same color and dashes in every plot; one without figures is in the legend too."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="memory frames T", ylabel=label, title=title, xscale="log", yscale="log")
    for index, route in enumerate(ROUTES):
        found = [(parse_shape(row.shape).frames, value_of(row)) for row in rows if row.route == route]
        points = sorted((frames, value) for frames, value in found if value is not None)
        width, dashes = (3.0, "-") if route in OURS else (1.2, ("--", ":", "-.")[index % 3])
        style: dict[str, Any] = {
            "color": colormaps["tab20"](index % 20),
            "linewidth": width,
            "linestyle": dashes,
            "marker": "o",
        }
        if points:
            axes.plot(*zip(*points, strict=True), label=route, **style)
        elif found:
            axes.plot([], [], linestyle="", label=f"({route}: none)")
    frames = sorted({parse_shape(row.shape).frames for row in rows})
    axes.set_xticks(frames, [f"{count:g}" for count in frames])
    axes.set_xticks([], minor=True)
    axes.grid(which="both", alpha=0.3)
    figure.legend(loc="outside right upper")
    with whole_file(path) as partial:
        figure.savefig(partial, format="svg")
