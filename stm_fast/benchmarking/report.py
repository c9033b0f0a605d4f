"""What was measured, for readers: tables, for a terminal and in Markdown, and plots of memory reads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stm_fast.benchmarking.frames import SAME_MASKS, VARIANTS
from stm_fast.benchmarking.records import PUBLISHED, FrameRow, ReadRow
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import OURS, FrameWorkload, parse_shape
from stm_fast.benchmarking.workload import DTYPES, lacks_instructions
from stm_fast.inference.stages import STAGES
from stm_fast.versions import how_to_install
from stm_fast.whole_file import whole_file


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = field(default=())  # below the table

    def markdown(self) -> str:
        """The table and its notes; a title is for terminals."""
        lines = [f"| {' | '.join(cells)} |" for cells in (self.head, *self.rows)]
        lines.insert(1, "|---" * len(self.head) + "|")
        return "\n\n".join(["\n".join(lines), *self.notes])

    def lines(self) -> Iterator[str]:
        """Lines for a terminal, in aligned columns."""
        if self.title:
            yield self.title
        cells = [self.head, *self.rows]
        first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for name, *row in cells:
            aligned = (f"{cell:>{width + 2}}" for cell, width in zip(row, others, strict=True))
            yield f"  {name:<{first}}{''.join(aligned)}".rstrip()
        yield from self.notes

    def transposed(self) -> "Table":
        """Rows as columns."""
        head, *rows = zip(self.head, *self.rows, strict=True)
        return Table(head, rows, self.title, self.notes)


def pivot(title: str, columns: Sequence[str], cells: dict[str, dict[str, str]], notes: Sequence[str] = ()) -> Table:
    """Names by columns; a cell that is missing is empty. `title` heads the column of names."""
    rows = [[name, *(found.get(column, "") for column in columns)] for name, found in cells.items()]
    return Table([title, *columns], rows, notes=notes)


# units; no text where there is no number


def seconds_text(seconds: float | None) -> str:
    """Three digits, in s, ms or us."""
    if seconds is None:
        return ""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def rate_text(tflop_per_second: float | None) -> str:
    """GFLOP/s below one TFLOP/s."""
    if tflop_per_second is None:
        return ""
    if tflop_per_second < 1:
        return f"{1e3 * tflop_per_second:.3g} GFLOP/s"
    return f"{tflop_per_second:.4g} TFLOP/s"


def bytes_text(count: float | None) -> str:
    """In MB, of 10^6 bytes."""
    return "" if count is None else f"{count / 1e6:,.1f} MB"


# memory reads


def ceilings(rows: Iterable[ReadRow]) -> dict[str, float | None]:
    """The best rate of torch.mm of each dtype, in TFLOP/s; None where the machine has no instructions for the dtype.

    There torch.mm is hundreds of times slower than the reads, and shares of its rate would mean nothing.
    """
    best: dict[str, float] = {}
    for row in rows:
        if row.pass_name == "matrix product" and row.tflop_per_second is not None:
            best[row.dtype] = max(best.get(row.dtype, 0.0), row.tflop_per_second)
    return {dtype: None if lacks_instructions(DTYPES[dtype], 1e12 * rate) else rate for dtype, rate in best.items()}


def _with_shares(rows: Sequence[ReadRow]) -> list[ReadRow]:
    """The rows, without shares of a torch.mm that multiplies other numbers, or has no instructions on the machine."""
    best = ceilings(rows)
    return [row if _has_share(row, best) else replace(row, fraction_of_mm=None) for row in rows]


def _has_share(row: ReadRow, best: dict[str, float | None]) -> bool:
    quantized = row.route in ROUTES and ROUTES[row.route].quantized
    return not quantized and best.get(row.dtype, 0.0) is not None


def read_table(rows: Sequence[ReadRow]) -> Table:
    """All figures of one shape and dtype: what was timed, and below it what was skipped, by reason."""
    timed = [row for row in _with_shares(rows) if row.seconds is not None]
    published = {row.pass_name: row.seconds for row in timed if row.route == PUBLISHED}
    head = ("pass", "median", "20-80 %", "rate", "of mm", "GB/s", "extra", "error", "x published", "first call")
    cells = [[f"{row.pass_name} {row.route}", *_figures(row, published.get(row.pass_name))] for row in timed]
    return Table(head, cells, f"{rows[0].shape} {rows[0].dtype}", list(_skipped(rows)))


def _figures(row: ReadRow, published: float | None) -> Iterator[str]:
    assert row.seconds is not None
    yield seconds_text(row.seconds)
    yield f"{seconds_text(row.seconds_20)}-{seconds_text(row.seconds_80)}"
    yield rate_text(row.tflop_per_second)
    yield _share(row)
    yield "" if row.gb_per_second is None else f"{row.gb_per_second:.3g}"
    yield bytes_text(row.extra_bytes)
    yield "" if row.error is None else f"{row.error:.1e}"
    yield "" if published is None else f"{published / row.seconds:.2f}"
    yield seconds_text(row.first_call_seconds)


def _skipped(rows: Iterable[ReadRow]) -> Iterator[str]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.skipped:
            by_reason.setdefault((row.pass_name, row.skipped), []).append(row.route)
    for (pass_name, reason), routes in by_reason.items():
        yield f"  {pass_name}: no {', '.join(routes)}: {reason}"


def route_table(rows: Sequence[ReadRow], dtype: str, pass_name: str) -> Table:
    """Routes by shapes; routes that never ran stand below, with their reasons."""
    chosen = [row for row in _with_shares(rows) if (row.dtype, row.pass_name) == (dtype, pass_name)]
    shapes = list(dict.fromkeys(row.shape for row in chosen))
    ran = [route for route in ROUTES if any(row.route == route and row.seconds is not None for row in chosen)]
    cells: dict[str, dict[str, str]] = {}
    for route in ran:
        name = f"**{route}**" if route in OURS else f"{route}: {ROUTES[route].what}"
        cells[name] = {row.shape: _summary(row) for row in chosen if row.route == route}
    reasons = {row.route: row.skipped for row in chosen if row.skipped and row.route not in ran}
    listed = "; ".join(f"{route} ({reason})" for route, reason in reasons.items())
    return pivot(f"{pass_name}, {dtype}", shapes, cells, [f"Did not run: {listed}."] if reasons else [])


def _summary(row: ReadRow) -> str:
    if row.seconds is None:
        return str(row.skipped)
    error = f"error {row.error:.1e}" if ROUTES[row.route].quantized and row.error is not None else ""
    parts = (seconds_text(row.seconds), _share(row), bytes_text(row.extra_bytes), error)
    return ", ".join(part for part in parts if part)


def _share(row: ReadRow) -> str:
    return "" if row.fraction_of_mm is None else f"{100 * row.fraction_of_mm:.0f} %"


# whole frames

_FIGURES: dict[str, Callable[[FrameRow, FrameRow], str]] = {  # of a row and the first row
    "frame": lambda row, first: f"{1000 * row.frame_seconds:.1f}",
    "frame, 20 to 80 %": lambda row, first: f"{1000 * row.frame_seconds_20:.0f} to {1000 * row.frame_seconds_80:.0f}",
    "frames/s": lambda row, first: f"{1 / row.frame_seconds:.2f}",
    "x the first": lambda row, first: f"{first.frame_seconds / row.frame_seconds:.2f}",
    "J to its masks, %": lambda row, first: f"{100 * row.similarity:.3f}" if _comparable(row) else "",
    "peak MiB": lambda row, first: "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
}


def _comparable(row: FrameRow) -> bool:
    """Whether J to the published masks means anything: the masks of an untrained network are noise.

    In float32, the same function gives the same noise; another precision or another memory gives other noise.
    """
    return row.workload.weights is not None or row.variant in SAME_MASKS


def by_workload(rows: Sequence[FrameRow]) -> list[list[FrameRow]]:
    """The rows of each workload, in the order of the run."""
    found: dict[FrameWorkload, list[FrameRow]] = {}
    for row in rows:
        found.setdefault(row.workload, []).append(row)
    return list(found.values())


def stage_table(rows: Sequence[FrameRow], figures: Iterable[str] = tuple(_FIGURES), digits: int = 1) -> Table:
    """Stages of one workload by variants, in milliseconds, and some of _FIGURES; ratios to the first variant."""
    first = rows[0]
    lines = [[stage, *(f"{1000 * row.stage_seconds[stage]:.{digits}f}" for row in rows)] for stage in STAGES]
    texts = {name: [_FIGURES[name](row, first) for row in rows] for name in figures}
    lines += [[name, *cells] for name, cells in texts.items() if any(cells)]
    outside = ", ".join(f"{what} {1000 * seconds:.1f} ms" for what, seconds in first.background_seconds.items())
    notes = [f"Beside the network, at the same time: {outside}."] if outside else []
    return Table([f"{first.workload}, {first.rounds} rounds, ms", *(row.variant for row in rows)], lines, notes=notes)


def frame_table(
    rows: Sequence[FrameRow], title: str, name_of: Callable[[FrameRow], str], cell_of: Callable[[FrameRow], str]
) -> Table:
    """Rows by workloads."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(name_of(row), {})[row.workload.name] = cell_of(row)
    return pivot(title, list(dict.fromkeys(row.workload.name for row in rows)), cells)


def variant_table(rows: Sequence[FrameRow]) -> Table:
    """Variants by workloads: a frame, times the published loop's speed, J, peak memory."""
    first = {group[0].workload: group[0] for group in by_workload(rows)}
    networks = ", ".join(dict.fromkeys(row.workload.network for row in rows))
    ordered = sorted(rows, key=lambda row: list(VARIANTS).index(row.variant))
    return frame_table(
        ordered, networks, lambda row: VARIANTS[row.variant], lambda row: _frame_cell(row, first[row.workload])
    )


def network_table(rows: Sequence[FrameRow]) -> Table:
    """Networks, and how they are run, by workloads: a frame, peak memory, frames a second."""
    return frame_table(
        rows,
        "frame, peak, frames a second",
        lambda row: f"{row.workload.network.removesuffix('.safetensors')}: {VARIANTS[row.variant]}",
        lambda row: f"{_frame_cell(row, row)}, {1 / row.frame_seconds:.2f}/s",
    )


def _frame_cell(row: FrameRow, first: FrameRow) -> str:
    """Figures of a variant; ratios where the first one is the published loop."""
    parts = [f"{1000 * row.frame_seconds:.0f} ms"]
    if first.variant == PUBLISHED and row is not first:
        parts.append(f"{first.frame_seconds / row.frame_seconds:.2f}x")
        if _comparable(row):
            parts.append(f"J {100 * row.similarity:.2f}")
    if row.peak_bytes is not None:
        parts.append(f"{row.peak_bytes / 1e6:,.0f} MB")
    return ", ".join(parts)


# plots of memory reads: time and memory against T, all routes

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


def how_to_get_plots() -> str:
    """What to do if they are not available."""
    return f"plots need matplotlib: {how_to_install('plots')}"


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
