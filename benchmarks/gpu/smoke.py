"""The first stage: does each kernel run at all, and is it right? Each in a process of its own, side by side."""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu.processes import Child
from gpu.session import Session, Stage
from gpu.smoke_case import CASES, SECONDS


def run(session: Session, stage: Stage, end: float) -> None:
    """Every case, until `end`."""
    with TemporaryDirectory() as folder:
        results = {name: Path(folder, f"{name}.json") for name in CASES}
        children = {name: session.child("gpu.smoke_case", name, str(results[name]), *session.options) for name in CASES}
        for name, child in children.items():
            stage.found[name] = found = _found(child, results[name], end)
            stage.lines.append(f"  {name:<10}{_verdict(found)}")
            if "ended" in found and time.monotonic() >= end:
                stage.missed.append(name)
    if not all(found.get("right") for found in stage.found.values()):
        stage.state = "red"


def _found(child: Child, result: Path, end: float) -> dict[str, Any]:
    code = child.wait(end)
    if result.exists():
        return dict(json.loads(result.read_text()))
    if code is None:
        return {"ended": "out of time"}
    return {"ended": f"hung for {SECONDS} s" if child.seconds > SECONDS else f"crashed, exit code {code}"}


def _verdict(found: dict[str, Any]) -> str:
    if "ended" in found:
        return f"{found['ended']}: see the log"
    if "refused" in found:
        return f"refused: {found['refused'][:90]}"
    verdict = "right" if found["right"] else "WRONG"
    return f"{verdict}: error {found['error']:.2e}, allowed {found['allowed']:.2e}, {found['seconds']:.1f} s"


def dangerous(stage: Stage | None) -> list[str]:
    """The cases that hung or crashed: no other process should launch these kernels."""
    return [name for name, found in (stage.found if stage else {}).items() if "ended" in found]
