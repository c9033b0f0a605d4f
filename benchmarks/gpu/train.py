"""The training burst, as make gpu-train runs it, in the minutes that are left."""

import os
import time

from gpu.session import Session, Stage

_TO_END = 20.0  # seconds that it has to write what it has
_LINES = 12  # of its output in the table


def run(session: Session, stage: Stage, end: float) -> None:
    """Until `end`, on the data that DATA names in the environment, into a folder of its own."""
    before = session.log.stat().st_size
    minutes = max(0.0, end - _TO_END - time.monotonic()) / 60
    options = ["--smoke"] if "--tiny" in session.options else []
    options += ["--data", os.environ["DATA"]] if "DATA" in os.environ else []
    place = {"OUT": str(session.out / "gpu-train")}
    code = session.child("gpu_train", "--minutes", f"{minutes:.2f}", *options, environment=place).wait(end)
    with session.log.open("rb") as log:
        log.seek(before)
        told = log.read().decode(errors="replace").splitlines()
    stage.lines += [f"  {line}" for line in told[-_LINES:]]
    if code != 0:
        stage.state = "out of time" if code is None else f"ended with exit code {code}: see the log"
