"""One launch of each forward kernel under ncu: tensor pipe, L2, shared memory, and what its warps wait for.

python -m gpu.profiler ROUTE [--tiny] reads once, for ncu.
"""

import csv
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from gpu.routes import PACKAGE_ROUTES
from gpu.session import Session, Stage, why_ended
from gpu.smoke import dangerous
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import parse_shape
from stm_fast.benchmarking.timing import make_call
from stm_fast.benchmarking.workload import Workload, in_layout, make_inputs

# a route, and the case of the stage "smoke" that launches the same kernel
KERNELS = {"triton": "rows", "portable": "portable"}
_SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "MemoryWorkloadAnalysis_Tables",
    "SchedulerStats",
    "WarpStateStats",
    "LaunchStats",
    "Occupancy",
)
# the first metric of ncu whose name matches is shown; names differ between its versions
_SHOWN = {
    "duration": r"gpu__time_duration\.",
    "SM busy %": r"sm__throughput\.avg\.pct",
    "tensor pipe %": r"sm__(inst_executed_)?pipe_tensor\w*(gmma|cycles_active)\S*pct",
    "tensor pipe, any %": r"sm__\w*pipe_tensor\w*\.avg\.pct",
    "L2 %": r"lts__t\w*\.avg\.pct_of_peak",
    "L2 hits %": r"lts__t_sector_hit_rate\.pct",
    "DRAM %": r"(dram__throughput\S*pct|gpu__dram_throughput\.avg\.pct)",
    "shared memory %": r"l1tex__data_(pipe|bank)\w*(shared|reads|wavefronts)\w*\.\S*pct",
    "L1 %": r"l1tex__throughput\.avg\.pct",
    "registers": r"launch__registers_per_thread$",
    "shared memory, bytes": r"launch__shared_mem_per_block(_dynamic)?$",
    "warps an SM": r"sm__warps_active\.avg\.per_cycle_active",
    "issue slots %": r"smsp__issue_active\.avg\.pct|smsp__issue_active\.avg\.per_cycle_active",
}
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+?)_per_issue_active\.ratio")
_STALLS = 5  # shown, the longest


def run(session: Session, stage: Stage, end: float) -> None:
    """Both kernels, as far as there is time and ncu."""
    ncu = shutil.which("ncu")
    if ncu is None:
        stage.lines.append("  ncu is not installed")
        stage.missed += KERNELS
        return
    for route, case in KERNELS.items():
        if case in dangerous(session.stages.get("smoke")):
            stage.missed.append(f"{route} (the smoke stage found it dangerous)")
            continue
        output = session.out / f"ncu-{route}.csv"
        read = [sys.executable, "-m", "gpu.profiler", route, *session.options]
        code = session.process([*command(ncu, output), *read]).wait(end)
        metrics = read_csv(output)
        stage.found[route] = metrics
        output.unlink(missing_ok=True)
        if not metrics:
            stage.missed.append(f"{route} (ncu: {why_ended(code)})")
            continue
        stage.lines.append(f"  {route}: " + ", ".join(shown(metrics)))


def command(ncu: str, output: Path) -> list[str]:
    """ncu for the first launch of a forward kernel, all metrics in one line of a CSV file."""
    sections = [option for section in _SECTIONS for option in ("--section", section)]
    return [
        *(ncu, "--clock-control", "none", "--kernel-name", "regex:forward", "--launch-count", "1"),
        *("--csv", "--page", "raw", "--log-file", str(output), *sections),
    ]


def read_csv(path: Path) -> dict[str, str]:
    """Metrics with their units, by name; empty where ncu has written none. ncu writes lines of its own before."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(rows) < 3:
        return {}
    names, units, values = rows[:3]
    return {name: f"{value} {unit}".strip() for name, unit, value in zip(names, units, values, strict=True)}


def shown(metrics: Mapping[str, str]) -> Iterator[str]:
    """A selection for a table, and the longest stalls in cycles an instruction."""
    for name, pattern in _SHOWN.items():
        found = next((value for metric, value in metrics.items() if re.match(pattern, metric)), None)
        if found is not None:
            yield f"{name} {found.removesuffix(' %')}"
    stalls = {match[1]: value for name, value in metrics.items() if (match := _STALL.match(name))}
    longest = sorted(stalls.items(), key=lambda stall: -_number(stall[1]))[:_STALLS]
    if longest:
        yield "stalls " + ", ".join(f"{name} {_number(value):.2f}" for name, value in longest)


def _number(text: str) -> float:
    return float(text.split()[0].replace(",", "") or 0)


def main() -> int:
    name, *options = sys.argv[1:]
    route = (ROUTES | PACKAGE_ROUTES)[name]
    shape = parse_shape("2x3-T1-O2" if "--tiny" in options else "480p-T20-O3")
    read = route.build(Workload(shape, torch.bfloat16, "forward", "cuda"))
    assert not isinstance(read, str)
    make_call("forward", read).timed(in_layout(make_inputs(shape, torch.bfloat16, "cuda", seed=0), route.layout))
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
