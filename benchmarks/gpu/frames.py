"""Whole frames by stage: the engine beside the published loop, as far as there is time."""

from dataclasses import dataclass, replace

from gpu.session import Session, Stage, why_ended
from stm_fast.benchmarking.records import FrameRow, read_record
from stm_fast.benchmarking.tables import by_workload, stage_table


@dataclass(frozen=True)
class Run:
    """The options of one stm-fast benchmark frames."""

    shapes: tuple[str, ...]
    variants: tuple[str, ...]
    rounds: int = 15


# what is asked first is timed first; the compiled ones take long until their first frame
RUNS = {
    "network": Run(("480p-T20-O1", "480p-T20-O3"), ("published", "prepared", "bfloat16", "float16")),
    "network-compiled": Run(("480p-T20-O1",), ("published", "bfloat16", "bfloat16-graphs")),
}
TINY = Run(("64p-T1-O1",), ("published", "prepared", "bfloat16"), rounds=1)


def run(session: Session, stage: Stage, end: float) -> None:
    """Every run that there is time for, each in a process of its own."""
    for name, wanted in _runs(session).items():
        path = session.out / f"{name}-{session.gpu}.json"
        path.unlink(missing_ok=True)
        options = ("--shapes", ",".join(wanted.shapes), "--variants", ",".join(wanted.variants), "--no-memory")
        more = ("--rounds", str(wanted.rounds), "--device", "cuda", "--output", str(path))
        code = session.child("stm_fast", "benchmark", "frames", *options, *more).wait(end)
        rows = read_record(path, FrameRow).rows if path.exists() else []
        for group in by_workload(rows):
            stage.lines += lines(group)
        if code != 0:
            stage.lines.append(f"  {name}: {why_ended(code)}")
            measured = {(row.workload.name, row.variant) for row in rows}
            pairs = [(shape, variant) for shape in wanted.shapes for variant in wanted.variants]
            stage.missed += [" ".join(pair) for pair in pairs if pair not in measured]
            stage.state = "out of time" if code is None else stage.state


def _runs(session: Session) -> dict[str, Run]:
    if "--tiny" in session.options:
        return {"network": TINY}
    if session.options:  # only compiled: what launches kernels of the package
        return {"network": replace(RUNS["network"], variants=RUNS["network"].variants[1:], rounds=1)}
    return RUNS


def lines(rows: list[FrameRow]) -> list[str]:
    """A line for each variant of a workload: milliseconds of the stages and of a frame, and J."""
    table = stage_table(rows, ("frame", "frame, 20 to 80 %", "J to its masks"))
    return list(replace(table, notes=()).transposed().lines())
