"""One run of make gpu: its folder, its log, and what each stage found, written as it comes."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu import BENCHMARKS, ROOT
from gpu.processes import Child
from stm_fast.benchmarking.machine import describe_machine
from stm_fast.whole_file import whole_file

_LOG_BYTES = 15 * 2**20  # what a borrowed machine hands back of one file


@dataclass
class Stage:
    """What became of a stage.

    state:  how it ended
    lines:  of the table at the end
    missed: what it did not reach
    found:  everything, for the record
    """

    name: str
    state: str = "not started"
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)


def patience(options: Sequence[str]) -> int:
    """How many times longer a kernel may take: with these options no GPU computes, and a few processors compile."""
    return 20 if {"--tiny", "--compile-only"} & set(options) else 1


class Session:
    """Where a run writes, and the processes that it starts.

    Args:
        out: folder of the record, the log and what the stages write; made where it is not there.
        settings: for the record.
        options: for the processes that it starts: --tiny or --compile-only, as gpu_checks.py has them.
    """

    def __init__(self, out: Path, stages: Sequence[str], settings: dict[str, Any], options: Sequence[str] = ()) -> None:
        self.out, self.options = out, options
        self.stages = {name: Stage(name) for name in stages}
        self._settings, self._started = settings, time.monotonic()
        self._children: list[Child] = []
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "gpu-checks.log"
        self.log.write_bytes(b"")
        self._machine = describe_machine("cuda")
        self.write()

    @property
    def gpu(self) -> str:
        """Its name, as part of a file's."""
        return str(self._machine["gpu"]).replace(" ", "-")

    def say(self, message: str) -> None:
        """To the terminal and to the log."""
        line = f"{time.monotonic() - self._started:6.1f} s  {message}"
        print(line, flush=True)
        with self.log.open("a") as log:
            log.write(f"\n=== {line}\n")

    def child(self, module: str, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        """A module of benchmarks/, as a process."""
        return self.process([sys.executable, "-m", module, *arguments], environment)

    def process(self, command: Sequence[str], environment: dict[str, str] | None = None) -> Child:
        """A process that finds the modules of benchmarks/, and no installed package is shadowed by the checkout."""
        paths = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        always = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        child = Child(command, self.log, ROOT, os.environ | always | (environment or {}))
        self._children.append(child)
        return child

    def write(self) -> None:
        """The record as it is now."""
        record = {"machine": self._machine, "settings": self._settings, "seconds": time.monotonic() - self._started}
        record |= {"stages": [asdict(stage) for stage in self.stages.values()]}
        with whole_file(self.out / "gpu-checks.json") as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")

    def close(self, table: str) -> None:
        """Ends what still runs, and writes the record and the end of the log."""
        for child in self._children:
            child.end()
        self.write()
        text = self.log.read_bytes()[-_LOG_BYTES:]
        self.log.write_bytes(text + f"\n{table}\n".encode())
