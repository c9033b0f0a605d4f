"""The first stage: does each kernel run at all, and is it right? Each in a process of its own, side by side."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu.processes import Child
from gpu.session import Session, Stage
from gpu.smoke_case import CASES, LAUNCHING, SECONDS


def run(session: Session, stage: Stage, end: float) -> None:
    """Every case, until `end`."""
    with TemporaryDirectory() as folder:
        results = {name: Path(folder, f"{name}.json") for name in CASES}
        children = {name: session.child("gpu.smoke_case", name, str(results[name]), *session.options) for name in CASES}
        for name, child in children.items():
            stage.found[name] = found = _found(child, results[name], end)
            stage.lines.append(f"  {name:<10}{_verdict(found)}")
            if "not started" in found:
                stage.missed.append(name)
    if not all(found.get("right") for found in stage.found.values()):
        stage.state = "red"


def _found(child: Child, result: Path, end: float) -> dict[str, Any]:
    code = child.wait(end)
    if not result.exists():
        return {"not started": "out of time" if code is None else f"exit code {code}"}
    found = dict(json.loads(result.read_text()))
    if LAUNCHING not in found:
        return found
    return {"ended": "out of time" if code is None else f"hung for {SECONDS} s, or crashed, exit code {code}"}


def _verdict(found: dict[str, Any]) -> str:
    for what in ("not started", "ended"):
        if what in found:
            return f"{what}: {found[what]}: see the log"
    if "refused" in found:
        return f"refused: {found['refused'][:90]}"
    verdict = "right" if found["right"] else "WRONG"
    return f"{verdict}: error {found['error']:.2e}, allowed {found['allowed']:.2e}, {found['seconds']:.1f} s"


def dangerous(stage: Stage | None) -> list[str]:
    """The cases that hung or crashed: no other process should launch these kernels."""
    return [name for name, found in (stage.found if stage else {}).items() if "ended" in found]
