"""An evaluation as one HTML page that needs nothing else: tables, curves, worst frames, speed, configuration."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.data.sequences import Sequence
from stm_fast.evaluation.chart import Line, line_chart
from stm_fast.evaluation.record import Record
from stm_fast.evaluation.scoring import ObjectScore
from stm_fast.inference.stages import STAGES
from stm_fast.listing import list_pictures, mask_of
from stm_fast.video import DAVIS_PALETTE, draw_overlay, read_written_mask
from stm_fast.video.picture_folder import read_frame
from stm_fast.whole_file import whole_file

STRIPS = 6  # sequences whose worst frames are shown
STRIP_FRAMES = 4
PICTURE_WIDTH = 300  # pixels
JPEG_QUALITY = 80

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 1300px;
       margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1em; margin-bottom: .3em }
table { border-collapse: collapse } td, th { padding: .15em .8em; text-align: right; border-bottom: 1px solid #e3e7ec }
td:first-child, th:first-child { text-align: left } td { font-variant-numeric: tabular-nums }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)); gap: 0 1.5em }
td:has(.bar), .facts td { text-align: left } .bar { background: #3b7dd8; height: .8em; display: inline-block }
.strip { display: flex; flex-wrap: wrap; gap: 8px } figure { margin: 0 } figcaption { font-size: .85em; color: #5a6573 }
figure img { display: block; margin-bottom: 2px } svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: #5a6573 } svg .grid { stroke: #e3e7ec }
svg polyline { fill: none; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round }
"""


def write_report(
    record: Record, scores: list[ObjectScore], results: Mapping[str, tuple[Sequence, Path]], file: Path
) -> None:
    """Writes the page, whole or not at all.

    Args:
        record: of `make_record`.
        scores: of every object.
        results: the sequences by name, and the folder of each one's masks.
        file: the page.
    """
    title = f"{record['run']['set']} {record['run']['split']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _scores_section(record, scores),
        _speed_section(record),
        _worst_section(scores, results),
        _curves_section(scores),
        _facts_section("Configuration", record["run"]),
        _facts_section("Environment", record["environment"]),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    page = f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
    with whole_file(file) as partial:
        # names of files may be no text
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def _scores_section(record: Record, scores: list[ObjectScore]) -> str:
    if not scores:
        return "<p>Nothing is scored: the annotations are not public.</p>"
    whole = _table(list(record["global"]), [[f"{value:.3f}" for value in record["global"].values()]])
    rows = [
        [score.name, *(f"{value:.3f}" for value in (*score.J, *score.F))]
        for score in sorted(scores, key=lambda score: score.J.mean + score.F.mean)
    ]
    header = ["Object", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    return f"<h2>Scores</h2>{whole}<h2>Objects, worst first</h2>{_table(header, rows)}"


def _speed_section(record: Record) -> str:
    speed = record["speed"]
    if speed is None:
        return ""
    frames = speed["frames"]
    seconds = {stage: speed["stage_seconds"].get(stage, 0.0) for stage in ("decode", *STAGES, "write")}
    longest = max(seconds.values())
    rows = [
        [
            escape(stage),
            f"{1000 * value / frames:.2f}",
            f'<span class="bar" style="width:{240 * value / longest:.0f}px"></span>',
        ]
        for stage, value in seconds.items()
    ]
    rates = (
        f"<p>{frames} frames: {speed['network_frames_per_second']:.2f} frames/s without loading, "
        f"{speed['frames_per_second']:.2f} frames/s end to end. Decoding and writing go on beside the network.</p>"
    )
    return f"<h2>Speed</h2>{rates}{_table(['Stage', 'ms a frame', ''], rows, escaped=True)}"


def _worst_section(scores: list[ObjectScore], results: Mapping[str, tuple[Sequence, Path]]) -> str:
    """Of the worst sequences, a strip of frames: above what was found, below what is true."""
    by_sequence = _by_sequence(scores)
    if not by_sequence:
        return ""
    means = {
        name: np.mean([score.region + score.contour for score in group], axis=0) / 2
        for name, group in by_sequence.items()
    }
    worst = sorted(means, key=lambda name: float(means[name].mean()))[:STRIPS]
    strips = []
    for name in worst:
        sequence, folder = results[name]
        frames = by_sequence[name][0].frames
        figures = [_figure(sequence, folder, frames[index], means[name][index]) for index in _lowest(means[name])]
        strips.append(f'<h3>{escape(name)}</h3><div class="strip">{"".join(figures)}</div>')
    return f"<h2>Worst frames: found above, true below</h2>{''.join(strips)}"


def _curves_section(scores: list[ObjectScore]) -> str:
    charts = []
    for name, group in _by_sequence(scores).items():
        lines = [
            Line(f"{measure} of object {score.object_id}", values.tolist(), _colour(score.object_id), dashed)
            for score in group
            for measure, values, dashed in (("J", score.region, False), ("F", score.contour, True))
        ]
        charts.append(f"<div><h3>{escape(name)}</h3>{line_chart(lines, group[0].frames)}</div>")
    return f'<h2>J (solid) and F (dashed) over time</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _facts_section(title: str, facts: Mapping[str, Any]) -> str:
    rows = [[name, str(value)] for name, value in _flat(facts)]
    return f'<h2>{title}</h2><div class="facts">{_table([], rows)}</div>'


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Facts within facts get joined names."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", deeper) for inner, deeper in _flat(value))
        else:
            yield name, value


def _table(header: list[str], rows: list[list[str]], escaped: bool = False) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell if escaped else escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _figure(sequence: Sequence, folder: Path, name: str, score: float) -> str:
    found = sequence.normalized(read_written_mask(mask_of(folder, name)).ids)
    picture = _picture(sequence, name, found.shape)
    images = "".join(
        f'<img alt="{escape(what)}" src="{_data_url(draw_overlay(picture, ids))}">'
        for what, ids in (("found", found), ("true", sequence.read_annotation(name)))
    )
    return f"<figure>{images}<figcaption>{escape(name)}: J&amp;F {score:.3f}</figcaption></figure>"


def _picture(sequence: Sequence, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The frame ``[H, W, 3]``; grey where only masks are known."""
    for file in () if sequence.frames is None else list_pictures(sequence.frames):
        if file.stem == name:
            return read_frame(file)
    return np.full((*shape, 3), 128, np.uint8)


def _data_url(picture: npt.NDArray[np.uint8]) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _lowest(values: npt.NDArray[np.float64]) -> list[int]:
    """Where the lowest values are, in order; no two close together, because neighbours look alike."""
    gap = max(len(values) // 10, 1)
    chosen: list[int] = []
    for index in np.argsort(values, kind="stable").tolist():
        if len(chosen) < STRIP_FRAMES and all(abs(index - other) >= gap for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def _by_sequence(scores: list[ObjectScore]) -> dict[str, list[ObjectScore]]:
    groups: defaultdict[str, list[ObjectScore]] = defaultdict(list)
    for score in scores:
        groups[score.sequence].append(score)
    return groups


def _colour(object_id: int) -> str:
    """The object's colour in masks and overlays."""
    red, green, blue = DAVIS_PALETTE[3 * object_id : 3 * object_id + 3]
    return f"#{red:02x}{green:02x}{blue:02x}"
