"""The training burst, as make gpu-train runs it: the minutes that are left, into the run's folder."""

import time

from gpu.session import Session, Stage

_TO_END = 20.0  # seconds that it has to write what it has
_LINES = 12  # of its output in the table


def run(session: Session, stage: Stage, end: float) -> None:
    """Until `end`."""
    before = session.log.stat().st_size
    minutes = max(0.0, end - _TO_END - time.monotonic()) / 60
    child = session.child("gpu_train", "--minutes", f"{minutes:.2f}", "--output", str(session.out))
    code = child.wait(end)
    with session.log.open("rb") as log:
        log.seek(before)
        told = log.read().decode(errors="replace").splitlines()
    stage.lines += [f"  {line}"[:120] for line in told[-_LINES:]]
    if code is None:
        stage.state = "out of time"
    elif code:
        stage.lines.append(f"  ended with exit code {code}: see the log")
