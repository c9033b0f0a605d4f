"""A chart of memory reads: time against the frames in memory, a panel for each processor, as SVG.

The text is text, and the same records always give the same file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stm_fast.benchmarking.records import PUBLISHED, ReadRow
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import OURS, parse_shape
from stm_fast.evaluation.report import templates

SERIES = "480p-O1"  # of the shapes that are drawn
QUANTIZED = "int8"  # the route that reads a memory of 8 bits
TITLE = "Time of one memory read"
SUBTITLE = "milliseconds, median; 480p, one object; lower is better"
_LABELS = 66  # right of the last panel
_TOP, _BOTTOM = 150, 370  # of the panels
_LEFT, _PANEL, _GAP = 62, 272, 108  # the first panel's left side, a panel's width, the space to the next one
_LEGEND_COLUMN, _LEGEND_ROW = 250, 19
_LABEL_HEIGHT = 13
_NOTES, _NOTE_HEIGHT = 62, 16  # below the panels
_STEPS = (100, 200, 250, 500, 1000, 2000, 5000)  # between grid lines, in milliseconds
_MOST_GRID_LINES = 5
_GRAY, _BROWN, _BLUE = "#6e7781", "#9a6700", "#0969da"
_SOLID, _DASHED, _DOTTED = "none", "7 4", "2 3"

_TEMPLATES = templates(Path(__file__).parent)


@dataclass(frozen=True)
class _Line:
    """The fastest of some routes at each length of the memory."""

    name: str
    routes: Sequence[str]
    dtype: str
    color: str
    dashes: str

    def milliseconds(self, rows: Sequence[ReadRow]) -> dict[float, float]:
        """By the number of frames in memory."""
        found: dict[float, float] = {}
        for row in rows:
            if (row.pass_name, row.dtype) != ("forward", self.dtype) or row.route not in self.routes or not row.seconds:
                continue
            shape = parse_shape(row.shape)
            if shape.series == SERIES:
                found[shape.frames] = min(found.get(shape.frames, float("inf")), 1e3 * row.seconds)
        return dict(sorted(found.items()))


PYTORCH = [name for name in ROUTES if name not in OURS]
_LINES = (
    _Line("published read, float32", [PUBLISHED], "float32", _GRAY, _SOLID),
    _Line("fastest PyTorch route, float32", PYTORCH, "float32", _BROWN, _SOLID),
    _Line("fastest PyTorch route, bfloat16", PYTORCH, "bfloat16", _BROWN, _DASHED),
    _Line("stm_fast, float32", ["cpp"], "float32", _BLUE, _SOLID),
    _Line("stm_fast, bfloat16", ["cpp"], "bfloat16", _BLUE, _DASHED),
    _Line("stm_fast, int8 memory", [QUANTIZED], "float32", _BLUE, _DOTTED),
)


class Panel(NamedTuple):
    """What was measured on one processor."""

    name: str
    rows: Sequence[ReadRow]


def has_all_lines(rows: Sequence[ReadRow]) -> bool:
    """Whether every line of the chart has two points or more, and all have the same lengths of the memory."""
    lengths = {tuple(line.milliseconds(rows)) for line in _LINES}
    return len(lengths) == 1 and all(len(each) > 1 for each in lengths)


def at_the_end(rows: Sequence[ReadRow]) -> tuple[float, dict[str, float]]:
    """The longest memory of the chart, in frames, and the milliseconds of each line with it."""
    times = {line.name: line.milliseconds(rows) for line in _LINES}
    frames = max(times[_LINES[0].name])
    return frames, {name: found[frames] for name, found in times.items()}


def speed_chart(panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """The chart as SVG.

    Args:
        panels: two of them, for which `has_all_lines` is true.
        notes: lines of text below the panels.
    """
    highest = max(max(line.milliseconds(panel.rows).values()) for line in _LINES for panel in panels)
    legend = [
        {
            "x": 20 + _LEGEND_COLUMN * (index // 2),
            "y": 76 + _LEGEND_ROW * (index % 2),
            "name": line.name,
            "color": line.color,
            "dashes": line.dashes,
        }
        for index, line in enumerate(_LINES)
    ]
    drawn = [_drawn(panel, index, highest) for index, panel in enumerate(panels)]
    return _TEMPLATES.get_template("speed_chart.svg").render(
        width=_LEFT + len(panels) * (_PANEL + _GAP) - _GAP + _LABELS,
        height=_BOTTOM + _NOTES + _NOTE_HEIGHT * len(notes),
        top=_TOP,
        bottom=_BOTTOM,
        title=TITLE,
        subtitle=SUBTITLE,
        legend=legend,
        panels=drawn,
        notes=[{"y": _BOTTOM + _NOTES + _NOTE_HEIGHT * index, "text": note} for index, note in enumerate(notes)],
    )


def _drawn(panel: Panel, index: int, highest: float) -> dict[str, Any]:
    """A panel in pixels; all panels have the same scale, up to `highest` milliseconds."""
    left = _LEFT + index * (_PANEL + _GAP)
    lengths = list(_LINES[0].milliseconds(panel.rows))

    def x(frames: float) -> float:
        return round(left + _PANEL * frames / lengths[-1], 1)

    def y(milliseconds: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * milliseconds / highest, 1)

    lines = []
    for line in _LINES:
        times = line.milliseconds(panel.rows)
        points = [{"x": x(frames), "y": y(value)} for frames, value in times.items()]
        label = f"{times[lengths[-1]]:,.0f} ms"
        lines.append({"name": line.name, "color": line.color, "dashes": line.dashes, "points": points, "label": label})
    _place_labels(lines)
    step = next((step for step in _STEPS if highest <= step * _MOST_GRID_LINES), _STEPS[-1])
    return {
        "name": panel.name,
        "left": left,
        "right": left + _PANEL,
        "lines": lines,
        "x_ticks": [{"at": x(frames), "text": f"{frames:g}"} for frames in lengths],
        "y_ticks": [{"at": y(value), "text": f"{value:,}"} for value in range(0, int(highest) + 1, step)],
    }


def _place_labels(lines: list[dict[str, Any]]) -> None:
    """Sets the height of the label at the end of each line; from below, each at least one line of text higher."""
    lowest = float("inf")
    for line in sorted(lines, key=lambda line: line["points"][-1]["y"], reverse=True):
        line["label_y"] = round(min(line["points"][-1]["y"] + 4, lowest - _LABEL_HEIGHT), 1)
        lowest = line["label_y"]
