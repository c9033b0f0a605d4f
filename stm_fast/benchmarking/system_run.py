"""A run of the system benchmark: workloads by name, a table each, one JSON file."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.system import (
    PUBLISHED,
    SIZES,
    SystemRow,
    SystemWorkload,
    beside_seconds,
    measure_system,
)
from stm_fast.errors import InputError
from stm_fast.inference.stages import STAGES
from stm_fast.video.whole_file import whole_file

# reduced precision is for devices that have instructions for it
CONTESTANTS = {
    "cpu": (PUBLISHED, "engine", "engine, prepared"),
    "cuda": (PUBLISHED, "engine", "engine, prepared", "engine, bfloat16", "engine, float16"),
}


def parse_workload(text: str) -> SystemWorkload:
    """The workload of a name such as 480p-T10-O3. Raises InputError for any other text."""
    match = re.fullmatch(r"(\d+p)-T([1-9]\d*)-O([1-9]|1\d|20)", text)
    if match is None or match[1] not in SIZES:
        raise InputError(f"shape: found {text!r}, expected for example 480p-T10-O3 ({', '.join(SIZES)})")
    return SystemWorkload(match[1], objects=int(match[3]), memory_frames=int(match[2]))


def run_system(workloads: Sequence[SystemWorkload], device: str, rounds: int, peaks: bool, output: Path) -> None:
    """Times workload after workload, prints a table of each, and writes what there is to `output` after each.

    Args:
        device: "cpu" or "cuda".
        rounds, peaks: as in `measure_system`.
        output: the JSON file.
    """
    record: dict[str, Any] = {"machine": describe_machine(device), "rows": [], "beside_seconds": {}}
    _write(record, output)  # a place that cannot be written to shows before anything is timed
    for workload in workloads:
        beside = beside_seconds(workload)
        rows = measure_system(workload, CONTESTANTS[device], rounds, device, peaks=peaks)
        record["rows"] += [asdict(row) for row in rows]
        record["beside_seconds"][str(workload)] = beside
        _write(record, output)
        print(table(rows, beside))


def table(rows: Sequence[SystemRow], beside: dict[str, float]) -> str:
    """Stages down, contestants across, in milliseconds; ratios to the first contestant."""
    first = rows[0]
    lines = {stage: [f"{1000 * row.stage_seconds[stage]:.1f}" for row in rows] for stage in STAGES}
    lines["frame"] = [f"{1000 * row.frame_seconds:.1f}" for row in rows]
    lines["20 to 80 %"] = [f"{1000 * row.frame_seconds_20:.0f}-{1000 * row.frame_seconds_80:.0f}" for row in rows]
    lines["frames/s"] = [f"{1 / row.frame_seconds:.2f}" for row in rows]
    lines["x published"] = [f"{first.frame_seconds / row.frame_seconds:.2f}" for row in rows]
    lines["same labels"] = [f"{row.agreement:.5f}" for row in rows]
    if first.peak_bytes is not None:
        lines["peak MiB"] = [f"{(row.peak_bytes or 0) / 2**20:.0f}" for row in rows]
    head = f"{'ms':16}" + "".join(f"{row.contestant:>18}" for row in rows)
    body = [f"{name:16}" + "".join(f"{cell:>18}" for cell in cells) for name, cells in lines.items()]
    outside = ", ".join(f"{what} {1000 * seconds:.1f} ms" for what, seconds in beside.items())
    return "\n".join([f"\n{first.workload}, {first.rounds} rounds", head, *body, f"beside the network: {outside}"])


def _write(record: dict[str, Any], output: Path) -> None:
    with whole_file(output) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
