"""Writes the tables of README.md, benchmarks/README.md and docs/dropin.md from benchmarks/results/*.json, and that of
docs/service.md from the estimates of the package.

python benchmarks/make_tables.py rewrites only what stands between marks; a second run changes nothing.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from costs import StorageRow
from drop_in import DropInRow
from drop_in import table as drop_in_table
from long_video import VideoRow
from prototypes import PolicyRow
from prototypes import table as policy_table
from run_memory import table as run_memory_table
from stm_fast.benchmarking.records import FrameRow, ReadRow, Record, read_record
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
from stm_fast.benchmarking.workload import PASSES
from stm_fast.errors import InputError
from stm_fast.whole_file import whole_file

HERE = Path(__file__).resolve().parent
DROP_IN = HERE.parent / "docs" / "dropin.md"
SERVICE = HERE.parent / "docs" / "service.md"
DOCUMENTS = (HERE.parent / "README.md", HERE / "README.md", DROP_IN, SERVICE)
_NOTHING = "Not measured yet."


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

    README.md shows the forward read in one record per processor, and summaries of whole frames; benchmarks/README.md
    shows everything but the reads of other models, which docs/dropin.md shows. docs/service.md shows estimates.
    """
    if document == SERVICE:
        return replaced(document, document.read_text(), "memory of runs", run_memory_table().markdown())
    if document == DROP_IN:
        return replaced(document, document.read_text(), "drop-in reads", drop_ins(_records("drop-in-*", DropInRow)))
    everything = document.parent == HERE
    reads = _records("memory-read-*", ReadRow)
    sections = {
        "figures": figures(reads, PASSES) if everything else figures(fullest(reads), ("forward",)),
        "whole frames": whole_frames(_records("network-*", FrameRow), by_stage=everything),
    }
    if everything:
        sections |= {
            "networks": networks(_records("networks-*", FrameRow)),
            "storage": storages(_records("storage-masks", StorageRow)),
            "prototypes": prototypes(_records("prototypes-*", PolicyRow)),
            "long videos": long_videos(_records("long-video-*", VideoRow)),
        }
    text = document.read_text()
    for name, body in sections.items():
        text = replaced(document, text, name, body)
    return text


def _records(names: str, row_type: type[Any]) -> list[Record[Any]]:
    return [read_record(path, row_type) for path in sorted((HERE / "results").glob(f"{names}.json"))]


def fullest(records: Sequence[Record[ReadRow]]) -> list[Record[ReadRow]]:
    """The record of each processor with the most routes; of several, the last."""
    found: dict[str, Record[ReadRow]] = {}
    for record in sorted(records, key=lambda record: len({row.route for row in record.rows})):
        found[_processor(record)] = record
    return list(found.values())


def replaced(document: Path, text: str, name: str, body: str) -> str:
    """The text of a document with another body between the marks of a section."""
    begin, end = f"<!-- {name}: written by benchmarks/make_tables.py -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{document}: expected the lines {begin} and {end} once each, in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end)[1]}"


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


def whole_frames(records: Sequence[Record[FrameRow]], *, by_stage: bool) -> str:
    """Whole frames: a summary of every record, and a table of the stages for each of its workloads."""
    parts: list[str] = []
    for record in records:
        parts.append(
            f"{_where(record)}, {_load(record)}. Median of a frame, times the published loop's speed, "
            "J to its masks in percent, peak memory beyond the loaded network; all variants interleaved."
        )
        parts.append(variant_table(record.rows).markdown())
        parts += [
            stage_table(rows, ("frame, 20 to 80 %",), 0).markdown() for rows in by_workload(record.rows) if by_stage
        ]
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


def _load(record: Record[Any]) -> str:
    return f"load {record.machine['load_average'][0]} at the start"


def _missing_devices(records: Sequence[Record[Any]]) -> Iterator[str]:
    for device, name in (("cpu", "CPU"), ("cuda", "GPU")):
        if not any(record.machine["device"] == device for record in records):
            yield f"{name}: not measured yet."


if __name__ == "__main__":
    sys.exit(main())
