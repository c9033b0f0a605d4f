"""A report of an evaluation as a self-contained HTML page: tables, curves, worst frames, speed, configuration."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from stm_fast.data.sequences import Sequence
from stm_fast.evaluation.record import Record
from stm_fast.evaluation.scoring import ObjectScore
from stm_fast.inference.stages import STAGES
from stm_fast.listing import list_images, mask_of
from stm_fast.printing import percent
from stm_fast.video import draw_overlay, read_written_mask
from stm_fast.video.image_folder import read_frame
from stm_fast.video.overlay_colors import overlay_colors
from stm_fast.whole_file import whole_file

STRIPS = 6  # sequences whose worst frames are shown
STRIP_FRAMES = 4
PICTURE_WIDTH = 300  # pixels
JPEG_QUALITY = 80
CHART_WIDTH, CHART_HEIGHT = 720, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 22  # margins of a chart
_LABELS = 7  # below a chart


def templates(folder: Path) -> Environment:
    """The templates of a folder, for HTML and SVG."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_TEMPLATES = templates(Path(__file__).parent)


@dataclass(frozen=True)
class Line:
    """One measure over time."""

    name: str
    values: Listing[float]  # in [0, 1]
    color: str  # in CSS
    dashed: bool = False


@dataclass(frozen=True)
class _Figure:
    """A frame with its masks, as data URLs."""

    frame: str
    score: str  # in percent
    prediction: str
    annotation: str


def write_report(
    record: Record, scores: list[ObjectScore], results: Mapping[str, tuple[Sequence, Path]], file: Path
) -> None:
    """Writes the page, completely or not at all.

    Args:
        record: from `make_record`.
        scores: of every object.
        results: sequences and the folders of their masks, by name.
        file: of the page.
    """
    speed = record["speed"]
    stages = () if speed is None else ("decode", *STAGES, "write")
    page = _TEMPLATES.get_template("report.html").render(
        title=f"{record['run']['set']} {record['run']['split']}",
        measures={name: percent(value) for name, value in (record["global"] or {}).items()},
        objects=[
            [score.name, *(percent(value) for value in (*score.J, *score.F))]
            for score in sorted(scores, key=lambda score: score.J.mean + score.F.mean)
        ],
        speed=speed,
        stages={stage: speed["stage_seconds"].get(stage, 0.0) for stage in stages},
        strips=_worst_frames(scores, results),
        charts={name: _curves(group) for name, group in _by_sequence(scores).items()},
        configuration=list(_flat(record["run"])),
        environment=list(_flat(record["environment"])),
    )
    with whole_file(file) as partial:
        # file names may be invalid Unicode
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def line_chart(lines: Listing[Line], labels: Listing[str]) -> Markup:
    """An SVG chart of values from 0 to 1 over T positions, in percent. The name of a line is its tooltip.

    Args:
        lines: of T values each.
        labels: T names of the positions, T at least 1, of which a few are shown.
    """
    count = len(labels)

    def x(index: int) -> float:
        return round(_LEFT + (CHART_WIDTH - _LEFT - _RIGHT) * index / max(count - 1, 1), 1)

    def y(value: float) -> float:
        return round(_TOP + (CHART_HEIGHT - _TOP - _BOTTOM) * (1 - value), 1)

    ticks = sorted({round(position) for position in np.linspace(0, count - 1, min(count, _LABELS))})
    size = {"width": CHART_WIDTH, "height": CHART_HEIGHT, "left": _LEFT, "right": _RIGHT}
    chart = _TEMPLATES.get_template("chart.svg").render(size, lines=lines, labels=labels, ticks=ticks, x=x, y=y)
    return Markup(chart)


def _curves(group: list[ObjectScore]) -> Markup:
    """The scores of a sequence's objects over time."""
    lines = [
        Line(f"{measure} of object {score.object_id}", values.tolist(), _color(score.object_id), dashed)
        for score in group
        for measure, values, dashed in (("J", score.region, False), ("F", score.contour, True))
    ]
    return line_chart(lines, group[0].frames)


def _worst_frames(scores: list[ObjectScore], results: Mapping[str, tuple[Sequence, Path]]) -> dict[str, list[_Figure]]:
    """The worst frames of the worst sequences, by name."""
    by_sequence = _by_sequence(scores)
    means = {
        name: np.mean([score.region + score.contour for score in group], axis=0) / 2
        for name, group in by_sequence.items()
    }
    worst = sorted(means, key=lambda name: float(means[name].mean()))[:STRIPS]
    return {
        name: [
            _figure(*results[name], by_sequence[name][0].frames[index], means[name][index])
            for index in _lowest(means[name])
        ]
        for name in worst
    }


def _figure(sequence: Sequence, folder: Path, frame: str, score: float) -> _Figure:
    found = sequence.normalized(read_written_mask(mask_of(folder, frame)).ids)
    picture = _picture(sequence, frame, found.shape)
    urls = (_data_url(draw_overlay(picture, ids)) for ids in (found, sequence.read_annotation(frame)))
    return _Figure(frame, percent(score), *urls)


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Flattens nested facts, with joined names."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", deeper) for inner, deeper in _flat(value))
        else:
            yield name, value


def _picture(sequence: Sequence, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The frame ``[H, W, 3]``; gray if only masks are known."""
    for file in () if sequence.frames is None else list_images(sequence.frames):
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
    """Sorted indices of the lowest values, spread out because neighboring frames look alike."""
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


def _color(object_id: int) -> str:
    """The object's color in overlays."""
    red, green, blue = overlay_colors()[object_id].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"
