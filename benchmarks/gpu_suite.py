"""A stage of make gpu that runs tests on many workers, and the pytest plugin of these workers.

Results are written as they come, each test has a time limit, and no test runs on a GPU that an earlier one broke. A
test that takes too long ends its process, whatever it hangs in; pytest-xdist reports it as failed and starts another
process. For make gpu-cache results are not compared, since nothing was computed.
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
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from gpu_checks import Session, Stage

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "tests/test_gpu_smoke.py"
TINY = "tests/test_hopper_engine.py::test_a_bank_with_spare_capacity_is_read_in_place"
# a test that starts a pytest of the files of cases: those files are given to the workers themselves
STARTER = "tests/test_triton_engine.py::test_kernels_are_right_on_the_device"
MAX_WORKERS = 16  # each has a context on the GPU
# in the environment of pytest: the file of results, the time limit of a test, and whether results are not compared
RESULTS, SECONDS, UNCOMPARED = "STM_FAST_GPU_RESULTS", "STM_FAST_GPU_SECONDS", "STM_FAST_GPU_UNCOMPARED"
_STDERR = os.dup(2)  # before pytest captures it
_LISTED = 12  # failed tests in the table; all of them are in the record


def run_smoke(session: "Session", stage: "Stage", end: float) -> None:
    """Each kernel once, against float64."""
    run_files([SMOKE, "-k", "tiny" if session.tiny else "published"], 20, session, stage, end)


def run_tests(session: "Session", stage: "Stage", end: float) -> None:
    """The tests marked gpu and the cases of the kernels."""
    run_files([TINY] if session.tiny else files_with_gpu_tests(), 60, session, stage, end)


def run_files(files: Sequence[str], seconds: int, session: "Session", stage: "Stage", end: float) -> None:
    """Runs as many tests of some files as there is time for; each may take `seconds`, more where no GPU computes."""
    limit = 20 * seconds if session.tiny or session.compile_only else seconds
    with TemporaryDirectory() as folder:
        results = Path(folder, "results")
        environment = {RESULTS: str(results), SECONDS: str(limit)}
        environment |= {"STM_FAST_REQUIRE": "triton", "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
        code = session.run(command(files), end, environment)
        stage.found |= read_results(results)
    outcomes, failed = stage.found["outcomes"], stage.found["failed"]
    stage.missed += stage.found.pop("not reached")
    if failed or not outcomes or code is None:
        stage.state = "red" if failed else "out of time" if code is None else "no test ran: see the log"
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "none ended"
    stage.lines.append(f"  {summary}" + ("; out of time" if code is None else ""))
    stage.lines += [f"  FAILED {test}: {error}"[:140] for test, error in list(failed.items())[:_LISTED]]
    if len(failed) > _LISTED:
        stage.lines.append(f"  and {len(failed) - _LISTED} more in the record")


def command(files: Sequence[str]) -> list[str]:
    """pytest with as many workers as there are processors, where pytest-xdist is installed."""
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    spread = ["-n", str(workers), "--dist", "worksteal"] if find_spec("xdist") else []
    return [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu_suite"),
        *("-m", "gpu", *spread, "--deselect", STARTER, *files),
    ]


def files_with_gpu_tests() -> list[str]:
    """The largest first. The others need not be importable here: such a machine may lack PyAV."""
    tests = ROOT / "tests"
    marked = [path for path in sorted(tests.glob("test_*.py")) if "mark.gpu" in path.read_text()]
    paths = [*sorted(tests.glob("*_engine_cases.py"), reverse=True), *marked]
    return [name for name in (str(path.relative_to(ROOT)) for path in paths) if name != SMOKE]


def read_results(path: Path) -> dict[str, Any]:
    """What the plugin has written. `hung`: tests that ended their process, or that were still running at the end."""
    # a process that was killed may have left half a line
    text = path.read_text() if path.exists() else ""
    events = [json.loads(line) for line in text.split("\n")[:-1]]
    names = {what: [event["test"] for event in events if event["outcome"] == what] for what in ("collected", "started")}
    ended = [event for event in events if event["outcome"] not in names]
    failed = {event["test"]: event["error"] for event in ended if event["outcome"] == "failed"}
    # a test may fail at its end too, after it has passed
    outcomes = {event["test"]: event["outcome"] for event in ended} | dict.fromkeys(failed, "failed")
    crashed = {test for test, error in failed.items() if "crashed while running" in error}  # says pytest-xdist
    return {
        "outcomes": dict(Counter(outcomes.values())),
        "failed": failed,
        "slowest": sorted(((round(event["seconds"], 1), event["test"]) for event in ended), reverse=True)[:10],
        "hung": [test for test in names["started"] if test in crashed or test not in outcomes],
        "not reached": [test for test in names["collected"] if test not in outcomes],
    }


# the plugin


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cases of the kernels, which run under the interpreter elsewhere."""
    for item in items:
        if item.path.name.endswith("_engine_cases.py"):
            item.add_marker(pytest.mark.gpu)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What will run; every worker collects the same."""
    if getattr(session.config, "workerinput", {"workerid": "gw0"})["workerid"] == "gw0":
        for item in session.items:
            _write(item.nodeid, "collected")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends the process where it hangs, or where the context is lost: then every later test would fail too."""
    _write(item.nodeid, "started")
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
    """Writes what has ended, in the process that all workers report to."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            _write(report.nodeid, report.outcome, report.duration, _first_line(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            _write(report.nodeid, "failed", error=_first_line(report))


def _write(test: str, outcome: str, seconds: float = 0.0, error: str = "") -> None:
    with open(os.environ[RESULTS], "a") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "seconds": seconds, "error": error}) + "\n")


def _first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr or "")
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
