"""A run of the system benchmark: workloads by name, a table each, one JSON file."""

from collections.abc import Sequence
from pathlib import Path

import torch

from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.system import PUBLISHED, SystemRow, beside_seconds, measure_system
from stm_fast.benchmarking.system_records import SystemRecord, write_system_record
from stm_fast.benchmarking.system_workload import SystemWorkload
from stm_fast.inference.stages import STAGES
from stm_fast.network.deploy.precision import has_bfloat16
from stm_fast.printing import say


def usual_contestants(device: str) -> tuple[str, ...]:
    """Reduced precision is for devices that have instructions for it."""
    reduced = ["bfloat16"] if has_bfloat16(torch.device(device)) else []
    reduced += ["bfloat16-graphs", "float16"] if device == "cuda" else []
    return (PUBLISHED, "prepared", "no-previous", "bfloat16-memory", *reduced)


def run_system(
    workloads: Sequence[SystemWorkload],
    contestants: Sequence[str],
    device: str,
    rounds: int,
    peaks: bool,
    output: Path,
) -> None:
    """Times workload after workload, prints a table of each, and writes what there is to `output` after each.

    Args:
        contestants, rounds, peaks: as in `measure_system`.
        device: "cpu" or "cuda".
        output: the JSON file.
    """
    record = SystemRecord(describe_machine(device))
    write_system_record(record, output)  # a place that cannot be written to shows before anything is timed
    for workload in workloads:
        beside = record.beside_seconds[workload.name] = beside_seconds(workload)
        rows = measure_system(workload, contestants, rounds, device, peaks=peaks)
        record.rows += rows
        write_system_record(record, output)
        say(*table(rows, beside))


def table(rows: Sequence[SystemRow], beside: dict[str, float]) -> list[str]:
    """Stages down, contestants across, in milliseconds; ratios to the first contestant."""
    first = rows[0]
    lines = {stage: [f"{1000 * row.stage_seconds[stage]:.1f}" for row in rows] for stage in STAGES}
    lines["frame"] = [f"{1000 * row.frame_seconds:.1f}" for row in rows]
    lines["20 to 80 %"] = [f"{1000 * row.frame_seconds_20:.0f}-{1000 * row.frame_seconds_80:.0f}" for row in rows]
    lines["frames/s"] = [f"{1 / row.frame_seconds:.2f}" for row in rows]
    lines["x the first"] = [f"{first.frame_seconds / row.frame_seconds:.2f}" for row in rows]
    lines["J to its masks"] = [f"{row.similarity:.5f}" for row in rows]
    if first.peak_bytes is not None:
        lines["peak MiB"] = [f"{(row.peak_bytes or 0) / 2**20:.0f}" for row in rows]
    head = f"{'ms':16}" + "".join(f"{row.contestant:>18}" for row in rows)
    body = [f"{name:16}" + "".join(f"{cell:>18}" for cell in cells) for name, cells in lines.items()]
    outside = ", ".join(f"{what} {1000 * seconds:.1f} ms" for what, seconds in beside.items())
    return ["", f"{first.workload}, {first.rounds} rounds", head, *body, f"beside the network: {outside}"]
