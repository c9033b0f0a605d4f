"""pytest plugin of the stage "tests": results as they come, a limit for each, none on a GPU that an earlier one broke.

A test that takes longer ends its process, whatever it hangs in; pytest-xdist reports it as failed and starts another.
For make gpu-cache results are not compared, since nothing was computed, and tests run to their end.
"""

import faulthandler
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# in the environment: the files of results and of what was collected, and the seconds that a test may take
RESULTS, COLLECTED, SECONDS = "STM_FAST_GPU_RESULTS", "STM_FAST_GPU_COLLECTED", "STM_FAST_GPU_SECONDS"
UNCOMPARED = "STM_FAST_GPU_UNCOMPARED"  # in the environment: results are not compared

_STDERR = os.dup(2)  # before pytest captures it


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
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
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
    import torch

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
