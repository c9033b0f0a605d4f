"""Markdown of what bench_network.py measured: whole frames, and where their time goes."""

from collections.abc import Sequence

from stm_fast.benchmarking.system import CONTESTANTS, PUBLISHED, SystemRow
from stm_fast.benchmarking.system_records import SystemRecord
from stm_fast.inference.stages import STAGES


def whole_frames(records: Sequence[SystemRecord], *, by_stage: bool) -> str:
    """Markdown of every record; a kind of device without one is not measured yet."""
    parts = [_record(record, by_stage) for record in records]
    for device, name in (("cpu", "CPU"), ("cuda", "GPU")):
        if not any(record.machine["device"] == device for record in records):
            parts.append(f"{name}: not measured yet.")
    return "\n\n".join(parts)


def networks(records: Sequence[SystemRecord]) -> str:
    """Markdown of what networks.py measured: networks and how they are run, by workloads."""
    if not records:
        return "Not measured yet."
    return "\n\n".join(_networks(record) for record in records)


def _networks(record: SystemRecord) -> str:
    columns = list(dict.fromkeys(row.workload.name for row in record.rows))
    lines = [f"| frame, peak, frames a second | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    cells: dict[str, dict[str, str]] = {}
    for row in record.rows:
        network = str(row.workload).rpartition(", ")[2].removesuffix(".safetensors")
        found = cells.setdefault(f"{network}: {CONTESTANTS[row.contestant]}", {})
        found[row.workload.name] = f"{_cell(row, row)}, {1 / row.frame_seconds:.2f}/s"
    lines += [f"| {name} | {' | '.join(found.get(c, '') for c in columns)} |" for name, found in cells.items()]
    return "\n".join([f"{_where(record)} Median of a frame, peak memory beyond the loaded network.", "", *lines])


def _where(record: SystemRecord) -> str:
    machine = record.machine
    device = machine["gpu"] or f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads"
    return (
        f"**{device}**, torch {machine['torch']}, commit {str(machine['commit'])[:12]}, {str(machine['date'])[:10]}, "
        f"load {machine['load_average'][0]} at the start."
    )


def _record(record: SystemRecord, by_stage: bool) -> str:
    head = (
        f"{_where(record)} Median of a frame, times the published loop's speed, J to its masks, peak memory beyond the "
        "loaded network; all contestants in turns."
    )
    tables = [_summary(record.workloads())]
    if by_stage:
        tables += [_stages(rows, record.beside_seconds[rows[0].workload.name]) for rows in record.workloads()]
    return "\n\n".join([head, *tables])


def _summary(workloads: Sequence[Sequence[SystemRow]]) -> str:
    """Contestants by workloads."""
    cells = {(row.contestant, row.workload): _cell(row, rows[0]) for rows in workloads for row in rows}
    columns = [rows[0].workload for rows in workloads]
    networks = ", ".join(dict.fromkeys(str(workload).rpartition(", ")[2] for workload in columns))
    lines = [
        f"| {networks} | {' | '.join(workload.name for workload in columns)} |",
        f"|---{'|---' * len(columns)}|",
    ]
    for name, what in CONTESTANTS.items():
        if any((name, workload) in cells for workload in columns):
            lines.append(f"| {what} | {' | '.join(cells.get((name, workload), '') for workload in columns)} |")
    return "\n".join(lines)


def _cell(row: SystemRow, first: SystemRow) -> str:
    parts = [f"{1000 * row.frame_seconds:.0f} ms"]
    if first.contestant == PUBLISHED and row is not first:
        parts += [f"{first.frame_seconds / row.frame_seconds:.2f}x", f"J {row.similarity:.4f}"]
    if row.peak_bytes is not None:
        parts.append(f"{row.peak_bytes / 1e6:,.0f} MB")
    return ", ".join(parts)


def _stages(rows: Sequence[SystemRow], beside: dict[str, float]) -> str:
    """Stages by contestants, in milliseconds."""
    lines = [
        f"| {rows[0].workload}, {rows[0].rounds} rounds, ms | {' | '.join(row.contestant for row in rows)} |",
        f"|---{'|---' * len(rows)}|",
        *(f"| {stage} | {' | '.join(f'{1000 * row.stage_seconds[stage]:.0f}' for row in rows)} |" for stage in STAGES),
        f"| frame, 20 to 80 % | {' | '.join(_spread(row) for row in rows)} |",
    ]
    outside = ", ".join(f"{what} {1000 * seconds:.1f} ms" for what, seconds in beside.items())
    return "\n".join(lines) + f"\n\nBeside the network, at the same time: {outside}."


def _spread(row: SystemRow) -> str:
    return f"{1000 * row.frame_seconds_20:.0f} to {1000 * row.frame_seconds_80:.0f}"
