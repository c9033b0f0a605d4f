"""One run of make gpu: its folder, its log, its processes, and what each stage found, written as it comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm_fast.benchmarking.records import Record, describe_machine

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
_LOG_BYTES = 15 * 2**20  # what a borrowed machine returns of one file


@dataclass
class Stage:
    """What a stage has found.

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


class Child:
    """A process in a session of its own, so that ending it ends what it has started too; its output goes to a log."""

    def __init__(self, command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        with log.open("ab") as output:
            output.write(f"\n$ {' '.join(command)}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, end: float) -> int | None:
        """Its exit code, or None where it had to be ended at `end` on the monotonic clock."""
        try:
            return self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.end()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def end(self) -> None:
        """Ends the process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def why_ended(code: int | None) -> str:
    """Of a process that did not do all of its work."""
    return "out of time" if code is None else f"ended with exit code {code}: see the log"


class Session:
    """Where a run writes, and the processes that it starts.

    Args:
        out: folder of the record, the log and what the stages write; it is created where it does not exist.
        settings: for the record.
        options: for the processes that it starts: --tiny or --compile-only, as gpu_checks.py has them.
    """

    def __init__(self, out: Path, stages: Sequence[str], settings: dict[str, Any], options: Sequence[str] = ()) -> None:
        self.out, self.options = out, options
        self.stages = {name: Stage(name) for name in stages}
        self._started = time.monotonic()
        self._children: list[Child] = []
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "gpu-checks.log"
        self.log.write_bytes(b"")
        self._record = Record(describe_machine("cuda"), settings, list(self.stages.values()))
        self.write()

    @property
    def gpu(self) -> str:
        """Its name, as part of a file's."""
        return str(self._record.machine["gpu"]).replace(" ", "-")

    def say(self, message: str) -> None:
        """To the terminal and to the log."""
        line = f"{time.monotonic() - self._started:6.1f} s  {message}"
        print(line, flush=True)
        with self.log.open("a") as log:
            log.write(f"\n=== {line}\n")

    def child(self, module: str, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        """A module as a process."""
        return self.process([sys.executable, "-m", module, *arguments], environment)

    def process(self, command: Sequence[str], environment: dict[str, str] | None = None) -> Child:
        """A process that finds the modules of benchmarks/; the checkout does not shadow an installed package."""
        paths = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        always = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        child = Child(command, self.log, ROOT, os.environ | always | (environment or {}))
        self._children.append(child)
        return child

    def write(self) -> None:
        """The record as it is now."""
        self._record.settings["seconds"] = time.monotonic() - self._started
        self._record.write(self.out / "gpu-checks.json")

    def close(self, table: str) -> None:
        """Ends the processes that still run, and writes the record and the end of the log."""
        for child in self._children:
            child.end()
        self.write()
        text = self.log.read_bytes()[-_LOG_BYTES:]
        self.log.write_bytes(text + f"\n{table}\n".encode())
