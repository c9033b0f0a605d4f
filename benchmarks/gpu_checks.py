"""Every check that needs a GPU, in one call of a few minutes: make gpu, or make gpu ARGUMENTS="--only smoke,reads".

The stages, in this order, each with its share of the minutes and the time that earlier ones did not use:

    smoke    does each kernel run at all, and is it right: one shape against float64
    tests    those marked gpu, and the cases of the kernels; failed ones are listed and stop nothing
    reads    the memory read compared with its peers, both layouts, all routes of a shape in the same rounds
    profile  one launch of each forward kernel under ncu
    frames   whole frames compared with the published loop
    train    the training burst, only if --only names it

All results are in the folder that OUT names in the environment, by default benchmarks/results, written as they come:
gpu-checks.json (every stage, and what it did not reach), gpu-checks.log, memory-read-<gpu>.json, network-<gpu>.json,
network-compiled-<gpu>.json, gpu-train/ with checkpoint.pt and log.jsonl. DATA names the data of the stage train.
The end of the output is a table. Exits 3 where there is no GPU, 1 where a stage could not do its work or a test failed.

Needs PyTorch, Triton, pytest, and the package: python3 -m pip install --no-deps --no-build-isolation -e .
pytest-xdist lets the tests run side by side: without it, a test that hangs ends its stage. The kernels of
`make gpu-cache` need not be compiled again.
"""

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
_MINUTES = 6.0
# a borrowed machine returns this much of one file, and this much of the end of an output
_LOG_BYTES = 15 * 2**20
_LINES, _CHARACTERS = 100, 11_000
_TRAIN_END = 20.0  # seconds of the stage train, to write what it has
_TRAIN_LINES = 12  # of its output, in the table


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


class Session:
    """Where the stages write, and how they start processes.

    Args:
        out: folder of the record, the log and what the stages write; it is created where it does not exist.
        settings: for the record.
        tiny, compile_only: options of this script, which some processes take too.
    """

    def __init__(
        self,
        out: Path,
        stages: Sequence[str],
        settings: dict[str, Any],
        *,
        tiny: bool = False,
        compile_only: bool = False,
    ) -> None:
        from stm_fast.benchmarking.records import Record, describe_machine

        self.out, self.tiny, self.compile_only = out, tiny, compile_only
        self.options = [name for name, on in (("--tiny", tiny), ("--compile-only", compile_only)) if on]
        self.stages = {name: Stage(name) for name in stages}
        self._started = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "gpu-checks.log"
        self.log.write_bytes(b"")
        self._record = Record(describe_machine("cuda"), settings, list(self.stages.values()))
        self.gpu = str(self._record.machine["gpu"]).replace(" ", "-")  # part of the names of files
        self.write()

    def say(self, message: str) -> None:
        """To the terminal and to the log."""
        line = f"{time.monotonic() - self._started:6.1f} s  {message}"
        print(line, flush=True)
        with self.log.open("a") as log:
            log.write(f"\n=== {line}\n")

    def run(self, command: Sequence[str], end: float, environment: Mapping[str, str] | None = None) -> int | None:
        """The exit code of a process, or None if it was ended at `end` on the monotonic clock. Its output is logged.

        What it has started is ended with it. It finds the modules of benchmarks/, and the checkout does not shadow an
        installed package.
        """
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        always = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=HERE.parent,
                env=os.environ | always | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            return process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @staticmethod
    def why_ended(code: int | None) -> str:
        """Of a process that did not do all of its work."""
        return "out of time" if code is None else f"ended with exit code {code}: see the log"

    def hung_kernels(self) -> list[str]:
        """The cases of the smoke stage that hung or crashed: no other process should launch these kernels."""
        hung = self.stages["smoke"].found.get("hung", []) if "smoke" in self.stages else []
        return [case for test in hung for case in re.findall(r"(\w+)\]$", test)]

    def write(self) -> None:
        """The record as it is now."""
        self._record.settings["seconds"] = time.monotonic() - self._started
        self._record.write(self.out / "gpu-checks.json")

    def close(self, table: str) -> None:
        """Writes the record and the end of the log."""
        self.write()
        text = self.log.read_bytes()[-_LOG_BYTES:]
        self.log.write_bytes(text + f"\n{table}\n".encode())


# the function of a session, a stage, and its end on the monotonic clock; the stage's share of the minutes
STAGES = {
    "smoke": ("gpu_suite:run_smoke", 1.0),
    "tests": ("gpu_suite:run_tests", 4.0),
    "reads": ("gpu_times:run_reads", 5.0),
    "profile": ("gpu_checks:run_profile", 1.0),
    "frames": ("gpu_times:run_frames", 2.0),
    "train": ("gpu_checks:run_train", 8.0),
}
_USUAL = tuple(name for name in STAGES if name != "train")


def main(arguments: list[str] | None = None) -> int:
    chosen = _arguments(arguments)
    problem = missing()
    if problem:
        print(f"gpu checks: {problem}", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("gpu checks: no CUDA device on this machine", file=sys.stderr)
        return 3
    from triton import knobs

    from gpu_cache import ARCHIVE, kernels_in, unpack

    # a run that is terminated still reports what it has
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings = vars(chosen) | {"out": str(chosen.out)}
    session = Session(chosen.out, chosen.only, settings, tiny=chosen.tiny, compile_only=chosen.compile_only)
    kernels = Path(knobs.cache.dir)
    try:
        if not chosen.compile_only:  # what is compiled then goes into an archive of its own
            session.say(unpack(ARCHIVE, kernels))
        before = kernels_in(kernels)
        run_stages(session, chosen.minutes)
        session.say(f"{kernels_in(kernels) - before} kernels were compiled")
    finally:
        text = table(session)
        session.close(text)
        print(text, flush=True)
    return int(any(stage.state != "done" for stage in session.stages.values()))


def missing() -> str | None:
    """What keeps the checks from running, and how to get it."""
    try:
        import stm_fast.benchmarking  # noqa: F401
    except ImportError as error:
        return f"stm_fast cannot be imported ({error}): python3 -m pip install --no-deps --no-build-isolation -e ."
    for package in ("pytest", "hypothesis", "triton"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    return None


def run_stages(session: Session, minutes: float) -> None:
    """One after the other; the time that one does not use goes to those after it."""
    end = time.monotonic() + 60 * minutes
    shares = [STAGES[name][1] for name in session.stages]
    for place, (name, stage) in enumerate(session.stages.items(), start=1):
        begin = time.monotonic()
        stage_end = end - 60 * minutes * sum(shares[place:]) / sum(shares)
        session.say(f"{name}: {max(0.0, stage_end - begin):.0f} s")
        stage.state = "running"
        try:
            resolve_name(STAGES[name][0])(session, stage, stage_end)
        except Exception as error:  # a stage that fails stops no other
            stage.state = f"failed: {type(error).__name__}: {error}"[:200]
            traceback.print_exc()
        stage.seconds = time.monotonic() - begin
        if stage.state == "running":
            stage.state = "done" if not stage.missed else "not all reached"
        session.say(f"{name}: {stage.state}, {stage.seconds:.0f} s")
        session.write()


def table(session: Session) -> str:
    """What was found, in at most _LINES lines and _CHARACTERS characters."""
    lines = []
    for name, stage in session.stages.items():
        lines.append(f"{name}: {stage.state}, {stage.seconds:.0f} s")
        lines += stage.lines
        if stage.missed:
            lines.append(f"  not reached, {len(stage.missed)}: {', '.join(stage.missed)}"[:160])
    lines = [line[:150] for line in lines]
    while len(lines) > _LINES - 1 or sum(len(line) + 1 for line in lines) > _CHARACTERS:
        lines.pop()
    return "\n".join([*lines, f"all results: {session.out}"])


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every check that needs a GPU.")
    parser.add_argument("--only", type=_names, default=_USUAL, help=f"some of {','.join(STAGES)}")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="for all stages together")
    parser.add_argument("--tiny", action="store_true", help="shapes that take no time, to try the stages themselves")
    parser.add_argument(
        "--compile-only", action="store_true", help="what launches kernels of the package alone, for make gpu-cache"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or HERE / "results"))
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    """Of stages, in the order in which they run."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}, expected some of {', '.join(STAGES)}")
    return tuple(name for name in STAGES if name in names)


# stages that only start a program


def run_train(session: Session, stage: Stage, end: float) -> None:
    """make gpu-train, until `end`, on the data that DATA names in the environment, into a folder of its own."""
    before = session.log.stat().st_size
    minutes = max(0.0, end - _TRAIN_END - time.monotonic()) / 60
    options = ["--smoke"] if session.tiny else []
    options += ["--data", os.environ["DATA"]] if "DATA" in os.environ else []
    command = [sys.executable, "-m", "gpu_train", "--minutes", f"{minutes:.2f}", *options]
    code = session.run(command, end, {"OUT": str(session.out / "gpu-train")})
    output = session.log.read_bytes()[before:].decode(errors="replace").splitlines()
    stage.lines += [f"  {line}" for line in output[-_TRAIN_LINES:]]
    if code != 0:
        stage.state = session.why_ended(code)


# a route, and the case of the stage "smoke" that launches the same kernel
KERNELS = {"triton": "rows", "portable": "portable"}
_SECTIONS = (
    *("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables"),
    *("SchedulerStats", "WarpStateStats", "LaunchStats", "Occupancy"),
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


def run_profile(session: Session, stage: Stage, end: float) -> None:
    """Both kernels, as far as there is time and ncu."""
    ncu = shutil.which("ncu")
    if ncu is None:
        stage.lines.append("  ncu is not installed")
        stage.missed += KERNELS
        return
    for route, case in KERNELS.items():
        if case in session.hung_kernels():
            stage.missed.append(f"{route} (it hung in the smoke stage)")
            continue
        with TemporaryDirectory() as folder:
            output, record = Path(folder, "ncu.csv"), Path(folder, "record.json")
            read = [sys.executable, "-m", "gpu_times", "reads", str(record), "600", route, *session.options]
            code = session.run([*ncu_command(ncu, output), *read], end)
            stage.found[route] = metrics = read_metrics(output)
        if metrics:
            stage.lines.append(f"  {route}: " + ", ".join(metrics_shown(metrics)))
        else:
            stage.missed.append(f"{route} (ncu: {session.why_ended(code)})")


def ncu_command(ncu: str, output: Path) -> list[str]:
    """ncu for the first launch of a forward kernel, all metrics in one line of a CSV file."""
    sections = [option for section in _SECTIONS for option in ("--section", section)]
    return [
        *(ncu, "--clock-control", "none", "--kernel-name", "regex:forward", "--launch-count", "1"),
        *("--csv", "--page", "raw", "--log-file", str(output), *sections),
    ]


def read_metrics(path: Path) -> dict[str, str]:
    """Metrics with their units, by name; empty where ncu has written none. ncu writes lines of its own before."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    if len(rows) < 3:
        return {}
    names, units, values = rows[:3]
    return {name: f"{value} {unit}".strip() for name, unit, value in zip(names, units, values, strict=True)}


def metrics_shown(metrics: Mapping[str, str]) -> Iterator[str]:
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


if __name__ == "__main__":
    sys.exit(main())
