"""Writes the tables of README.md and benchmarks/README.md from benchmarks/results/*.json.

python benchmarks/make_tables.py rewrites only what stands between marks; a second run changes nothing.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stm_fast.benchmarking import Record, Row, read_record
from stm_fast.benchmarking.routes import OURS, ROUTES
from stm_fast.benchmarking.system_records import SystemRecord, read_system_record
from stm_fast.benchmarking.units import bytes_text, rate_text, seconds_text
from stm_fast.errors import InputError
from stm_fast.whole_file import whole_file
from system_tables import networks, whole_frames

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- figures: written by benchmarks/make_tables.py -->", "<!-- end of figures -->"
FRAMES_BEGIN, FRAMES_END = "<!-- whole frames: written by benchmarks/make_tables.py -->", "<!-- end of whole frames -->"
STORAGE_BEGIN, STORAGE_END = "<!-- storage: written by benchmarks/make_tables.py -->", "<!-- end of storage -->"
LONG_BEGIN, LONG_END = "<!-- long videos: written by benchmarks/make_tables.py -->", "<!-- end of long videos -->"
NETWORKS_BEGIN, NETWORKS_END = "<!-- networks: written by benchmarks/make_tables.py -->", "<!-- end of networks -->"
# README shows the forward read, benchmarks/README.md everything
DOCUMENTS = {HERE.parent / "README.md": ("forward",), HERE / "README.md": ("forward", "backward", "top-k")}


def main() -> int:
    try:
        for document in DOCUMENTS:
            text = as_measured(document)
            with whole_file(document) as partial:
                partial.write_text(text)
    except InputError as error:
        print(f"make_tables: {error}", file=sys.stderr)
        return 2
    return 0


def as_measured(document: Path) -> str:
    """The text of one of DOCUMENTS with what is in results/ between its marks."""
    reads = [read_record(path) for path in sorted((HERE / "results").glob("memory-read-*.json"))]
    frames = [read_system_record(path) for path in sorted((HERE / "results").glob("network-*.json"))]
    text = with_figures(document, document.read_text(), reads, DOCUMENTS[document])
    text = with_frames(document, text, frames, by_stage=document.parent == HERE)
    if document.parent != HERE:
        return text
    several = [read_system_record(path) for path in sorted((HERE / "results").glob("networks-*.json"))]
    text = _between(document, text, (NETWORKS_BEGIN, NETWORKS_END), networks(several))
    measured = HERE / "results" / "storage-masks.json"
    record = json.loads(measured.read_text()) if measured.is_file() else None
    text = _between(document, text, (STORAGE_BEGIN, STORAGE_END), storage(record))
    videos = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("long-video-*.json"))]
    return _between(document, text, (LONG_BEGIN, LONG_END), long_videos(videos))


def with_figures(document: Path, text: str, records: Sequence[Record], passes: Sequence[str]) -> str:
    """The text of a document with the memory reads of some records."""
    return _between(document, text, (BEGIN, END), figures(records, passes))


def with_frames(document: Path, text: str, records: Sequence[SystemRecord], *, by_stage: bool) -> str:
    """The text of a document with the whole frames of some records."""
    return _between(document, text, (FRAMES_BEGIN, FRAMES_END), whole_frames(records, by_stage=by_stage))


def storage(record: dict[str, Any] | None) -> str:
    """Markdown of what `storage_masks.py` measured."""
    if record is None:
        return "Not measured yet."
    names = list(next(iter(record["J"].values())))
    lines = [f"| J, mean and smallest | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for clip, found in record["J"].items():
        cells = (f"{found[name]['mean']:.4f}, {found[name]['smallest']:.4f}" for name in names)
        lines.append(f"| {clip} | {' | '.join(cells)} |")
    machine = record["machine"]
    head = (
        f"Weights {record['weights']}, every {record['every']} frames in memory, commit {str(machine['commit'])[:12]}."
    )
    return "\n".join([head, "", *lines])


def long_videos(records: Sequence[dict[str, Any]]) -> str:
    """Markdown of what `bench_long_video.py` measured: a line for each run, after 1,000 frames and at its end."""
    if not records:
        return "Not measured yet."
    lines = ["| run | frames | bank | resident after 1,000 frames, at the end | frames/s then, at the end |"]
    lines.append("|---|---|---|---|---|")
    for record in records:
        work = record["work"]
        for name, run in record["runs"].items():
            early = next((window for window in run["windows"] if window["last_frame"] >= 999), run["windows"][-1])
            late = run["windows"][-1]
            network = f"{work['backbone']} with a decoder of {work['decoder_dim']}"
            what = f"{name}, {network}, {work['size']}, every {work['every']}"
            cells = [
                f"{late['last_frame'] + 1:,}",
                bytes_text(1e6 * late["bank_mb"]),
                f"{early['resident_mb']:,.0f} MB, {late['resident_mb']:,.0f} MB",
                f"{early['frames_per_second']:.1f}, {late['frames_per_second']:.1f}",
            ]
            lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _between(document: Path, text: str, marks: tuple[str, str], body: str) -> str:
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{document}: expected the lines {begin} and {end} once each, in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end)[1]}"


def figures(records: Sequence[Record], passes: Sequence[str]) -> str:
    """Markdown of every record; a kind of device without one is not measured yet."""
    parts = [_record(record, passes) for record in records if any(row.pass_name in passes for row in record.rows)]
    for device, name in (("cpu", "CPU"), ("cuda", "GPU")):
        if not any(record.machine["device"] == device for record in records):
            parts.append(f"{name}: not measured yet.")
    return "\n\n".join(parts)


def _record(record: Record, passes: Sequence[str]) -> str:
    machine = record.machine
    where = machine["gpu"] or f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads"
    huge_pages = f", THP_MEM_ALLOC_ENABLE={machine['THP_MEM_ALLOC_ENABLE']}" if machine["THP_MEM_ALLOC_ENABLE"] else ""
    head = (
        f"**{where}**, torch {machine['torch']}, triton {machine['triton']}{huge_pages}, commit "
        f"{str(machine['commit'])[:12]}, {str(machine['date'])[:10]}. Median, share of a torch.mm of the same run "
        f"({_ceilings(record.rows)}), memory beyond inputs and results."
    )
    kinds = dict.fromkeys((row.dtype, row.pass_name) for row in record.rows if row.pass_name in passes)
    return "\n\n".join([head, *(_table(record.rows, dtype, pass_name) for dtype, pass_name in kinds)])


def _ceilings(rows: Sequence[Row]) -> str:
    best: dict[str, float] = {}
    for row in rows:
        if row.pass_name == "matrix product" and row.tflop_per_second is not None:
            best[row.dtype] = max(best.get(row.dtype, 0.0), row.tflop_per_second)
    return ", ".join(f"{dtype} at best {rate_text(rate)}" for dtype, rate in best.items())


def _table(rows: Sequence[Row], dtype: str, pass_name: str) -> str:
    """Routes by shapes; routes that never ran stand below, with their reasons."""
    chosen = [row for row in rows if (row.dtype, row.pass_name) == (dtype, pass_name)]
    shapes = list(dict.fromkeys(row.shape for row in chosen))
    cells = {(row.route, row.shape): row for row in chosen}
    ran = [route for route in ROUTES if any(row.route == route and row.seconds is not None for row in chosen)]
    lines = [f"| {pass_name}, {dtype} | {' | '.join(shapes)} |", f"|---{'|---' * len(shapes)}|"]
    for route in ran:
        name = f"**{route}**" if route in OURS else f"{route}: {ROUTES[route].what}"
        lines.append(f"| {name} | {' | '.join(_cell(cells.get((route, shape))) for shape in shapes)} |")
    reasons = {row.route: row.refused for row in chosen if row.refused and row.route not in ran}
    below = (
        [f"Did not run: {'; '.join(f'{route} ({reason})' for route, reason in reasons.items())}."] if reasons else []
    )
    return "\n\n".join(["\n".join(lines), *below])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.seconds is None or row.fraction_of_mm is None:
        return str(row.refused)
    error = f"error {row.error:.1e}" if ROUTES[row.route].quantised and row.error is not None else ""
    parts = (seconds_text(row.seconds), f"{100 * row.fraction_of_mm:.0f} %", bytes_text(row.extra_bytes), error)
    return ", ".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())
