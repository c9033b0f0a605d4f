"""Line charts as inline SVG, drawn by hand: a report needs no library and no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 720, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 22  # margins


@dataclass(frozen=True)
class Line:
    """One measure over time."""

    name: str
    values: Sequence[float]  # in [0, 1]
    colour: str  # as CSS writes it
    dashed: bool = False


def line_chart(lines: Sequence[Line], x_labels: Sequence[str]) -> str:
    """An SVG of values from 0 to 1 over T positions; hovering over a line tells its name.

    Args:
        lines: of T values each.
        x_labels: T names of the positions, T at least 1, of which a few are written.
    """
    count = len(x_labels)
    body = [_grid(), *(_x_label(index, count, x_labels[index]) for index in _ticks(count))]
    body += [_polyline(line, count) for line in lines]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(body)}</svg>'


def _grid() -> str:
    parts = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = _y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    return "".join(parts)


def _x_label(index: int, count: int, label: str) -> str:
    anchor = "end" if index and index == count - 1 else "middle"
    return f'<text x="{_x(index, count):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{escape(label)}</text>'


def _polyline(line: Line, count: int) -> str:
    dash = ' stroke-dasharray="5 3"' if line.dashed else ""
    points = " ".join(f"{_x(index, count):.1f},{_y(value):.1f}" for index, value in enumerate(line.values))
    title = f"<title>{escape(line.name)}</title>"
    return f'<polyline points="{points}" stroke="{escape(line.colour)}"{dash}>{title}</polyline>'


def _ticks(count: int) -> list[int]:
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, 7))})


def _x(index: int, count: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * index / max(count - 1, 1)


def _y(value: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - value)
