"""The tests marked gpu and the cases of the kernels, on many workers. Red tests are listed.

It is also the pytest plugin of these workers: results as they come, a limit for each test, none on a GPU that an
earlier one broke. A test that takes longer ends its process, whatever it hangs in; pytest-xdist reports it as failed
and starts another. For make gpu-cache results are not compared, since nothing was computed, and tests run to their end.
"""

import faulthandler
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from gpu.session import ROOT, Session, Stage, patience

TEST_SECONDS = 60
MOST_WORKERS = 16  # each has a context on the GPU
# a test that starts a pytest of the files of cases: those files are given to the workers themselves
STARTER = "tests/test_triton_engine.py::test_kernels_are_right_on_the_device"
TINY = "tests/test_hopper_engine.py::test_a_bank_with_spare_capacity_is_read_in_place"
# in the environment of pytest: the files of results and of what was collected, the seconds that a test may take, and
# whether results are compared
RESULTS, COLLECTED, SECONDS = "STM_FAST_GPU_RESULTS", "STM_FAST_GPU_COLLECTED", "STM_FAST_GPU_SECONDS"
UNCOMPARED = "STM_FAST_GPU_UNCOMPARED"
_STDERR = os.dup(2)  # before pytest captures it
_LISTED = 12  # red tests in the table; all of them are in the record


def run(session: Session, stage: Stage, end: float) -> None:
    """Runs what there is time for."""
    with TemporaryDirectory() as folder:
        files = [ROOT / TINY] if "--tiny" in session.options else files_with_gpu_tests()
        child = session.process(command(files), environment(Path(folder), TEST_SECONDS * patience(session.options)))
        code = child.wait(end)
        stage.found |= _found(Path(folder))
    counts, red = stage.found["outcomes"], stage.found["red"]
    stage.missed += stage.found.pop("not reached")
    if red or not counts or code is None:
        stage.state = "red" if red else "out of time" if code is None else "no test ran: see the log"
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none ended"
    stage.lines.append(f"  {summary}" + ("" if code is not None else f"; stopped after {child.seconds:.0f} s"))
    stage.lines += [f"  RED {test}: {error}"[:140] for test, error in list(red.items())[:_LISTED]]
    if len(red) > _LISTED:
        stage.lines.append(f"  and {len(red) - _LISTED} more red ones in the record")


def command(files: Sequence[Path]) -> list[str]:
    """pytest with as many workers as there are processors or files, where pytest-xdist is installed."""
    workers = min(MOST_WORKERS, os.cpu_count() or 1, len(files) or 1)
    spread = ["-n", str(workers), "--dist", "worksteal"] if find_spec("xdist") else []
    return [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu.suite"),
        *("-m", "gpu", *spread, "--deselect", STARTER, *map(str, files)),
    ]


def environment(folder: Path, seconds: float) -> dict[str, str]:
    """Of the workers: one thread each, no interpreter, and where results are written."""
    results = {RESULTS: str(folder / "results"), COLLECTED: str(folder / "collected"), SECONDS: str(seconds)}
    return results | {"STM_FAST_REQUIRE": "triton", "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}


def files_with_gpu_tests() -> list[Path]:
    """The largest first. The others need not be importable here: such a machine may lack PyAV."""
    tests = ROOT / "tests"
    marked = [path for path in sorted(tests.glob("test_*.py")) if "mark.gpu" in path.read_text()]
    return [*sorted(tests.glob("*_engine_cases.py"), reverse=True), *marked]


def _found(folder: Path) -> dict[str, Any]:
    results = [json.loads(line) for line in _lines(folder / "results")]
    red = {result["test"]: result["error"] for result in results if result["outcome"] == "failed"}
    # a test may fail at its end too, after it has passed
    outcomes = {result["test"]: result["outcome"] for result in results} | dict.fromkeys(red, "failed")
    slowest = sorted(((round(result["seconds"], 1), result["test"]) for result in results), reverse=True)[:10]
    return {
        "outcomes": dict(Counter(outcomes.values())),
        "red": red,
        "slowest": slowest,
        "not reached": [test for test in _lines(folder / "collected") if test not in outcomes],
    }


def _lines(path: Path) -> list[str]:
    # a process that was killed may have left half a line
    return path.read_text().split("\n")[:-1] if path.exists() else []


# the plugin


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cases of the kernels, which run under the interpreter elsewhere."""
    for item in items:
        if item.path.name.endswith("_engine_cases.py"):
            item.add_marker(pytest.mark.gpu)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What will run; every worker collects the same."""
    if getattr(session.config, "workerinput", {"workerid": "gw0"})["workerid"] == "gw0" and session.items:
        with open(os.environ[COLLECTED], "w") as file:
            file.writelines(f"{item.nodeid}\n" for item in session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends the process where it hangs, or where the context is lost: then every later test would be red too."""
    faulthandler.dump_traceback_later(float(os.environ[SECONDS]), exit=True, file=_STDERR)
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_configure(config: pytest.Config) -> None:
    if UNCOMPARED in os.environ:
        _compare_nothing()
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Results())


def _compare_nothing() -> None:
    from stm_fast.testing import runs

    def nothing(*_arguments: Any, **_options: Any) -> dict[str, torch.Tensor]:
        return {}

    torch.testing.assert_close = runs.assert_no_worse_than_eager = nothing
    runs.rounded_once = runs.eager_outputs = nothing


class _Results:
    """One line for each test that has ended."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            _write(report.nodeid, report.outcome, report.duration, _first_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            _write(report.nodeid, "failed", 0.0, _first_line(report))


def _write(test: str, outcome: str, seconds: float, error: str) -> None:
    with open(os.environ[RESULTS], "a") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "seconds": seconds, "error": error}) + "\n")


def _first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr or "")
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
