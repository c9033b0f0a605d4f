"""Whole frames by stage: the engine beside the published loop, as far as there is time."""

from collections.abc import Iterator, Sequence

from gpu.frames_child import RUNS
from gpu.session import Session, Stage
from stm_fast.benchmarking.system import SystemRow
from stm_fast.benchmarking.system_records import read_system_record
from stm_fast.inference.stages import STAGES


def run(session: Session, stage: Stage, end: float) -> None:
    """Every workload that there is time for."""
    path = session.out / f"network-{session.gpu}.json"
    path.unlink(missing_ok=True)
    child = session.child("gpu.frames_child", str(path), *session.options)
    code = child.wait(end)
    rows = read_system_record(path).rows if path.exists() else []
    stage.lines += tables(rows)
    if code:
        stage.lines.append(f"  ended with exit code {code}: see the log")
    if code != 0:
        measured = {(row.workload.name, row.contestant) for row in rows}
        stage.missed += [
            f"{name} {contestant}" for name, names in RUNS for contestant in names if (name, contestant) not in measured
        ]
        stage.state = "out of time" if code is None else stage.state


def tables(rows: Sequence[SystemRow]) -> Iterator[str]:
    """A line for each contestant: milliseconds of a frame, of its stages, and J to the published masks."""
    if rows:
        yield f"  {'ms':<30}{'frame':>9}" + "".join(f"{stage:>16}" for stage in STAGES) + f"{'J':>9}"
    for row in rows:
        stages = "".join(f"{1e3 * row.stage_seconds[stage]:>16.2f}" for stage in STAGES)
        yield (
            f"  {row.workload.name + ' ' + row.contestant:<30}{1e3 * row.frame_seconds:>9.2f}{stages}"
            f"{row.similarity:>9.4f}"
        )
