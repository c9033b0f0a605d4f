"""The rows of a benchmark as tables for a terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stm_fast.benchmarking.records import Row
from stm_fast.benchmarking.units import bytes_text, rate_text, seconds_text

_COLUMNS = ("median", "20-80 %", "rate", "of mm", "GB/s", "extra", "error", "x published", "first call")


def render(rows: Sequence[Row]) -> RenderableType:
    """The rows of one shape and dtype: what was timed as a table, what refused below it, by reason."""
    timed = [row for row in rows if row.seconds is not None]
    parts: list[RenderableType] = [_table(rows[0], timed)] if timed else [Text(f"{rows[0].shape} {rows[0].dtype}")]
    return Group(*parts, *map(Text, _refusals(row for row in rows if row.refused)))


def _table(first: Row, timed: Sequence[Row]) -> Table:
    table = Table(title=f"{first.shape} {first.dtype}", title_justify="left")
    table.add_column("pass", no_wrap=True)
    table.add_column("route", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    published = {row.pass_name: row.seconds for row in timed if row.route == "published"}
    for index, row in enumerate(timed):
        last_of_pass = index + 1 == len(timed) or timed[index + 1].pass_name != row.pass_name
        table.add_row(row.pass_name, row.route, *_cells(row, published.get(row.pass_name)), end_section=last_of_pass)
    return table


def _cells(row: Row, published: float | None) -> Iterable[str]:
    assert row.seconds is not None
    yield seconds_text(row.seconds)
    yield f"{seconds_text(row.seconds_20)}-{seconds_text(row.seconds_80)}"
    yield rate_text(row.tflop_per_second)
    yield "" if row.fraction_of_mm is None else f"{100 * row.fraction_of_mm:.0f} %"
    yield "" if row.gb_per_second is None else f"{row.gb_per_second:.3g}"
    yield bytes_text(row.extra_bytes)
    yield "" if row.error is None else f"{row.error:.1e}"
    yield "" if published is None else f"{published / row.seconds:.2f}"
    yield seconds_text(row.first_call_seconds)


def _refusals(refused: Iterable[Row]) -> Iterable[str]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in refused:
        assert row.refused is not None
        by_reason.setdefault((row.pass_name, row.refused), []).append(row.route)
    for (pass_name, reason), routes in by_reason.items():
        yield f"  {pass_name}: no {', '.join(routes)}: {reason}"
