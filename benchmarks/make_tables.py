"""Writes the tables of README.md, benchmarks/README.md, docs/dropin.md and docs/scale.md, and a chart, from
benchmarks/results/*.json.

The table of docs/service.md is written from the estimates of the package.

python benchmarks/make_tables.py writes docs/images/speed.svg, and in the documents only what stands between marks; a
second run changes nothing.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bulk_tables import TABLES as MANY_VIDEOS
from bulk_tables import costs_table
from costs import StorageRow
from drop_in import DropInRow
from drop_in import table as drop_in_table
from long_video import VideoRow
from prototypes import PolicyRow
from prototypes import table as policy_table
from run_memory import table as run_memory_table
from speed_chart import PYTORCH, QUANTIZED, SERIES, Panel, at_the_end, has_all_lines, speed_chart
from stm_fast.benchmarking.frames import VARIANTS
from stm_fast.benchmarking.records import PUBLISHED, AnyRow, FrameRow, ReadRow, Record, read_record
from stm_fast.benchmarking.report import (
    Table,
    by_workload,
    bytes_text,
    ceilings,
    network_table,
    pivot,
    rate_text,
    route_table,
    stage_table,
    variant_table,
)
from stm_fast.benchmarking.shapes import SIZES, FrameWorkload
from stm_fast.benchmarking.workload import PASSES
from stm_fast.errors import InputError
from stm_fast.whole_file import whole_file

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
DROP_IN = HERE.parent / "docs" / "dropin.md"
CHART = HERE.parent / "docs" / "images" / "speed.svg"
SCALE = HERE.parent / "docs" / "scale.md"
SERVICE = HERE.parent / "docs" / "service.md"
DOCUMENTS = (README, HERE / "README.md", DROP_IN, CHART, SCALE, SERVICE)
_NOTHING = "Not measured yet."
# rows of the short table: a variant of whole frames, and its name there
_SHORT_ROWS = {
    PUBLISHED: "published loop in plain PyTorch, float32",
    "prepared": "stm_fast, float32",
    "bfloat16": "stm_fast, bfloat16",
}
_SHORT_MEMORIES = (10, 50)  # columns of the short table: frames in memory


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
    """The text of one of DOCUMENTS with what is in results/ between its marks.

    README.md shows a short table, benchmarks/README.md everything but the reads of other models, which docs/dropin.md
    shows, and many videos, which docs/scale.md shows. docs/service.md shows estimates.
    """
    if document == CHART:
        return chart(_records("memory-read-*", ReadRow))
    text = document.read_text()
    for name, body in _sections(document).items():
        text = replaced(document, text, name, body)
    return text


def _sections(document: Path) -> dict[str, str]:
    """What stands between the marks of a document, by their names."""
    if document == DROP_IN:
        return {"drop-in reads": drop_ins(_records("drop-in-*", DropInRow))}
    if document == SCALE:
        return many_videos()
    if document == SERVICE:
        return {"memory of runs": run_memory_table().markdown()}
    reads, frames = _records("memory-read-*", ReadRow), _records("network-*", FrameRow)
    if document == README:
        return {"speed": speed(reads, frames)}
    return {
        "figures": figures(reads, PASSES),
        "whole frames": whole_frames(frames),
        "networks": networks(_records("networks-*", FrameRow)),
        "storage": storages(_records("storage-masks", StorageRow)),
        "prototypes": prototypes(_records("prototypes-*", PolicyRow)),
        "long videos": long_videos(_records("long-video-*", VideoRow)),
    }


def _records(names: str, row_type: type[Any]) -> list[Record[Any]]:
    return [read_record(path, row_type) for path in sorted((HERE / "results").glob(f"{names}.json"))]


def replaced(document: Path, text: str, name: str, body: str) -> str:
    """The text of a document with another body between the marks of a section."""
    begin, end = f"<!-- {name}: written by benchmarks/make_tables.py -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{document}: expected the lines {begin} and {end} once each, in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end)[1]}"


def speed(reads: Sequence[Record[ReadRow]], frames: Sequence[Record[FrameRow]]) -> str:
    """The chart of memory reads, and a short table of whole frames from the last record that has its rows."""
    return f"![{_chart_in_words(charted(reads))}]({CHART.relative_to(README.parent)})\n\n{short_table(frames)}"


def charted(records: Sequence[Record[ReadRow]]) -> list[Record[ReadRow]]:
    """The last record of each processor that has all lines of the chart."""
    whole = [record for record in records if has_all_lines(record.rows)]
    return list({_processor(record): record for record in sorted(whole, key=_date)}.values())


def chart(records: Sequence[Record[ReadRow]]) -> str:
    """The chart of memory reads as SVG, with where they were measured."""
    chosen = charted(records)
    notes = [
        f"Fastest PyTorch route: at each length, of {', '.join(_pytorch_routes(chosen))} (see benchmarks/README.md).",
        f"Largest error of a read with an int8 memory, relative to float64: {_largest_error(chosen):.1%}.",
        *(_where(record).replace("*", "") for record in chosen),
    ]
    return speed_chart([Panel(_short_processor(record), record.rows) for record in chosen], notes)


def _pytorch_routes(records: Sequence[Record[ReadRow]]) -> list[str]:
    """Those that ran."""
    timed = {row.route for record in records for row in record.rows if row.seconds}
    return [route for route in PYTORCH if route in timed]


def _largest_error(records: Sequence[Record[ReadRow]]) -> float:
    """Of reads with a quantized memory."""
    return max(row.error or 0.0 for record in records for row in record.rows if row.route == QUANTIZED)


def _chart_in_words(records: Sequence[Record[ReadRow]]) -> str:
    """For readers who do not see the chart."""
    parts = [f"Time of one memory read against the frames in memory, {SERIES.replace('-O1', ', one object')}."]
    for record in records:
        frames, times = at_the_end(record.rows)
        listed = "; ".join(f"{name} {milliseconds:,.0f} ms" for name, milliseconds in times.items())
        parts.append(f"{_short_processor(record)}, {frames:g} frames: {listed}.")
    return " ".join(parts)


def short_table(records: Sequence[Record[FrameRow]]) -> str:
    """Whole frames with one object: milliseconds and peak memory, from the last record that has all rows."""
    whole = [record for record in records if _short_cells(record).keys() >= _SHORT_ROWS.keys()]
    if not whole:
        return _NOTHING
    record = max(whole, key=_date)
    cells = _short_cells(record)
    size = FrameWorkload().size
    height, width = SIZES[size]
    rows = [[name, *cells[variant]] for variant, name in _SHORT_ROWS.items()]
    head = ["", *(f"{count} frames in memory" for count in _SHORT_MEMORIES), f"peak memory with {_SHORT_MEMORIES[-1]}"]
    about = (
        f"A frame of {width}x{height} with one object, {FrameWorkload().backbone}, random weights, on {_where(record)}:"
    )
    no_gpu = (
        []
        if any(each.machine["device"] == "cuda" for each in records)
        else ["Whole frames on a GPU: not measured yet."]
    )
    return "\n\n".join([about, Table(head, rows).markdown(), *no_gpu])


def _short_cells(record: Record[FrameRow]) -> dict[str, list[str]]:
    """The cells of each variant that was run with one object and all of _SHORT_MEMORIES."""
    workloads = [FrameWorkload(memory_frames=count) for count in _SHORT_MEMORIES]
    found = {(row.variant, row.workload): row for row in record.rows}
    cells: dict[str, list[str]] = {}
    for variant in VARIANTS:
        rows = [found[variant, workload] for workload in workloads if (variant, workload) in found]
        if len(rows) == len(workloads):
            cells[variant] = [*(f"{1e3 * row.frame_seconds:,.0f} ms" for row in rows), _whole_mb(rows[-1].peak_bytes)]
    return cells


def figures(records: Sequence[Record[ReadRow]], passes: Sequence[str]) -> str:
    """Memory reads: a table for each pass and dtype of every record."""
    parts: list[str] = []
    for record in records:
        kinds = dict.fromkeys((row.dtype, row.pass_name) for row in record.rows if row.pass_name in passes)
        if kinds:
            parts.append(
                f"{_where(record, versions=True)}. Median, share of a torch.mm of the same run "
                f"({_ceilings(record.rows)}), memory beyond inputs and results."
            )
            parts += [route_table(record.rows, *kind).markdown() for kind in kinds]
    return "\n\n".join([*parts, *_missing_devices(records)])


def _ceilings(rows: Sequence[ReadRow]) -> str:
    none = "not of {}, for which this machine has no instructions"
    return ", ".join(
        none.format(dtype) if rate is None else f"{dtype} at best {rate_text(rate)}"
        for dtype, rate in ceilings(rows).items()
    )


def whole_frames(records: Sequence[Record[FrameRow]]) -> str:
    """Whole frames: a summary of every record, and a table of the stages for each of its workloads."""
    parts: list[str] = []
    for record in records:
        parts.append(
            f"{_where(record)}, {_load(record)}. Median of a frame, times the published loop's speed, "
            "J to its masks in percent, peak memory beyond the loaded network; all variants interleaved."
        )
        parts.append(variant_table(record.rows).markdown())
        parts += [stage_table(rows, ("frame, 20 to 80 %",), 0).markdown() for rows in by_workload(record.rows)]
    return "\n\n".join([*parts, *_missing_devices(records)])


def networks(records: Sequence[Record[FrameRow]]) -> str:
    """What `costs.py networks` measured."""
    parts: list[str] = []
    for record in records:
        parts.append(f"{_where(record)}, {_load(record)}. Median of a frame, peak memory beyond the loaded network.")
        parts.append(network_table(record.rows).markdown())
    return "\n\n".join(parts) or _NOTHING


def drop_ins(records: Sequence[Record[DropInRow]]) -> str:
    """What `drop_in.py` measured."""
    parts: list[str] = []
    for record in records:
        parts.append(f"{_where(record)}, {_load(record)}. Median of a read, both interleaved.")
        parts.append(drop_in_table(record.rows).markdown())
    return "\n\n".join([*parts, *_missing_devices(records)])


def prototypes(records: Sequence[Record[PolicyRow]]) -> str:
    """What `prototypes.py` measured."""
    parts: list[str] = []
    for record in records:
        cap, held = record.settings["cap"], record.settings["prototypes"]
        memory = f"In memory: {cap} frames, or {held} slots of prototypes and {cap - held} frames."
        parts.append(f"{_where(record)}, {_load(record)}, {record.rows[0].frames} frames per clip. {memory}")
        parts.append(policy_table(record.rows).markdown())
    return "\n\n".join(parts) or _NOTHING


def storages(records: Sequence[Record[StorageRow]]) -> str:
    """What `costs.py masks` measured."""
    parts: list[str] = []
    for record in records:
        cells: dict[str, dict[str, str]] = {}
        for row in record.rows:
            cells.setdefault(row.clip, {})[row.storage] = f"{row.mean:.4f}, {row.smallest:.4f}"
        commit = str(record.machine["commit"])[:12]
        every = record.settings["every"]
        parts.append(f"Weights {record.settings['weights']}, every {every} frames in memory, commit {commit}.")
        names = list(dict.fromkeys(row.storage for row in record.rows))
        parts.append(pivot("J, mean and smallest", names, cells).markdown())
    return "\n\n".join(parts) or _NOTHING


def many_videos() -> dict[str, str]:
    """What `bulk.py` measured, by the name of the table."""
    records = {name: _records(f"bulk-{name}", row_type)[0] for name, (row_type, _) in MANY_VIDEOS.items()}
    parts = {name: _measured(record, MANY_VIDEOS[name][1]) for name, record in records.items()}
    return parts | {"costs": costs_table(records["tasks"], records["overheads"]).markdown()}


def _measured(record: Record[AnyRow], table: Callable[[Record[AnyRow]], Table]) -> str:
    """A table, and where its figures were measured."""
    return f"{_where(record)}, ray {record.machine['ray']}, {_load(record)}.\n\n{table(record).markdown()}"


def long_videos(records: Sequence[Record[VideoRow]]) -> str:
    """What `long_video.py` measured: a line for each run, after 1,000 frames and at its end."""
    head = ("run", "frames", "bank", "resident after 1,000 frames, at the end", "frames/s then, at the end")
    rows = [_video_cells(record.settings, row) for record in records for row in record.rows]
    return Table(head, rows).markdown() if records else _NOTHING


def _video_cells(settings: dict[str, Any], row: VideoRow) -> list[str]:
    late = row.windows[-1]
    early = next((window for window in row.windows if window.last_frame >= 999), late)
    network = f"{settings['backbone']} with a decoder of {settings['decoder_dim']}"
    return [
        f"{row.run}, {network}, {settings['size']}, every {settings['every']}",
        f"{late.last_frame + 1:,}",
        bytes_text(1e6 * late.bank_mb),
        f"{early.resident_mb:,.0f} MB, {late.resident_mb:,.0f} MB",
        f"{early.frames_per_second:.1f}, {late.frames_per_second:.1f}",
    ]


def _where(record: Record[Any], *, versions: bool = False) -> str:
    """Where a record was measured, with Triton's version and the CPU's huge pages where they count."""
    machine = record.machine
    parts = [f"**{_processor(record)}**", f"torch {machine['torch']}"]
    if versions:
        parts.append(f"triton {machine['triton']}")
        huge_pages = machine["THP_MEM_ALLOC_ENABLE"]
        parts += [f"THP_MEM_ALLOC_ENABLE={huge_pages}"] if huge_pages else []
    return ", ".join([*parts, f"commit {str(machine['commit'])[:12]}", str(machine["date"])[:10]])


def _processor(record: Record[Any]) -> str:
    machine = record.machine
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return machine["gpu"] or f"{machine['cpu']} ({machine['cpu_capability']}), {threads}"


def _whole_mb(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"


def _short_processor(record: Record[Any]) -> str:
    """The processor by its name and the best instructions that it has."""
    machine = record.machine
    name = str(machine["gpu"] or machine["cpu"]).replace("(R)", "").replace(" Processor", "")
    return f"{name}, {str(machine['cpu_capability']).split(', ')[-1]}"


def _date(record: Record[Any]) -> str:
    return str(record.machine["date"])


def _load(record: Record[Any]) -> str:
    return f"load {record.machine['load_average'][0]} at the start"


def _missing_devices(records: Sequence[Record[Any]]) -> Iterator[str]:
    for device, name in (("cpu", "CPU"), ("cuda", "GPU")):
        if not any(record.machine["device"] == device for record in records):
            yield f"{name}: not measured yet."


if __name__ == "__main__":
    sys.exit(main())
