"""Every check that needs a GPU, in one call of under 8 minutes: make gpu.

The tests marked gpu; then, if they pass, times of the memory read beside its peers, written to
benchmarks/results/memory-read-<gpu>.json. The last line on stdout is that JSON. Exits 3 where there is no GPU, 1 where
a check fails.

How the minutes are spent, at most:

    0:00 to 3:50  the tests, stopped then; what they leave over goes to the times
    to 7:00       TARGETS, the shapes of the project's targets: every pass, every route that is not compiled first
                  COMPILED on one of them, beside the published read
                  LONGER memories and larger frames, in bfloat16 as all of the above
                  FEW in float32 and float16
    to 8:00       the end of the last route that was started; what did not start is in the record as "out of time"

A shape and dtype takes 4 s of rounds (or 5 rounds) after the first calls, in which Triton compiles.

Needs PyTorch, Triton, pytest, and the package: python3 -m pip install --no-deps --no-build-isolation -e .
"""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TEST_SECONDS = 230
MOST_SHARES = 8  # each has a context on the GPU
ALL_SECONDS = 420  # then no further route is started, and the last one ends within the 8 minutes

# what is asked first is timed first
COMPILED = ("compile", "compile-dynamic", "flex", "flex-32x32", "flex-64x32", "flex-64x64")
DEVICE = "cuda"
TARGETS = ("480p-T20-O3", "480p-T20-O1", "480p-T1-O1")
LONGER = ("480p-T5-O1", "480p-T100-O1", "1080p-T20-O1", "480p-T1000-O1")
FEW = ("480p-T20-O1",)  # in the other dtypes


def main() -> int:
    started = time.monotonic()
    problem = missing()
    if problem:
        print(f"gpu checks: {problem}", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("gpu checks: no CUDA device on this machine", file=sys.stderr)
        return 3
    if not tests_pass():
        print("gpu checks: the tests failed, so nothing is timed", file=sys.stderr)
        return 1
    time_reads(started + ALL_SECONDS)
    return 0


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


def tests_pass() -> bool:
    """Whether the tests pass, in shares side by side: what takes long is compiling kernels."""
    end = time.monotonic() + TEST_SECONDS
    shares = min(MOST_SHARES, os.cpu_count() or 1)
    with TemporaryDirectory() as folder:
        logs = [Path(folder, f"{share}.log") for share in range(shares)]
        processes = [start_tests(f"{share}/{shares}", log) for share, log in enumerate(logs)]
        try:
            codes = [process.wait(max(0.0, end - time.monotonic())) for process in processes]
        except subprocess.TimeoutExpired:
            codes = [1]
            print(f"gpu checks: the tests took more than {TEST_SECONDS} s", file=sys.stderr)
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            print(log.read_text(), file=sys.stderr)
    return not any(codes)


def start_tests(share: str, log: Path) -> subprocess.Popen[bytes]:
    """A process with its share of the tests, as tests/conftest.py cuts them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *map(str, files_with_gpu_tests())]
    # safe path: the folder of the checkout must not shadow an installed wheel
    environment = os.environ | {"STM_FAST_REQUIRE": "triton", "PYTHONSAFEPATH": "1", "STM_FAST_SHARE": share}
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def files_with_gpu_tests() -> list[Path]:
    """The others need not be importable here: such a machine may lack PyAV."""
    return [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]


def time_reads(end: float) -> None:
    """Times until `end` on the monotonic clock, and writes the record after every shape."""
    from stm_fast.benchmarking import PASSES, ROUTES, Record, Selection, parse_shape, run_benchmark, write_record
    from stm_fast.benchmarking.machine import describe_machine

    record = Record(describe_machine(DEVICE), {"tests": "passed", "runs": []})
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"memory-read-{str(record.machine['gpu']).replace(' ', '-')}.json"
    uncompiled = tuple(route for route in ROUTES if route not in COMPILED)
    runs = [
        (TARGETS, torch.bfloat16, uncompiled),
        (TARGETS[:1], torch.bfloat16, ("published", *COMPILED)),
        (LONGER, torch.bfloat16, uncompiled),
        (FEW, torch.float32, uncompiled),
        (FEW, torch.float16, uncompiled),
    ]
    for shapes, dtype, routes in runs:
        selection = Selection(
            shapes=tuple(map(parse_shape, shapes)),
            dtypes=(dtype,),
            passes=PASSES,
            routes=routes,
            device=DEVICE,
            seconds=4.0,
            deadline=max(0.0, end - time.monotonic()),
        )
        record.settings["runs"].append(selection.describe())
        for rows in run_benchmark(selection, lambda message: print(message, file=sys.stderr)):
            record.rows += rows
            write_record(record, path)
    print(record.to_json())


if __name__ == "__main__":
    sys.exit(main())
