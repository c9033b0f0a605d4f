"""Hooks and fixtures for all tests: what is required, selection of cases, poisoned memory, the published numbers."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import browser
import gate_record
from stm_fast import progress
from stm_fast.kernels import tuned
from stm_fast.kernels.plans import forget_plans
from stm_fast.network import STM, stm_resnet50
from stm_fast.network.checkpoint import published_name
from stm_fast.ops.backends import BACKENDS

GOLDEN = Path(__file__).parent / "golden"
# processes started by a test import its functions as tests.test_x; last, so that no installed package is shadowed
sys.path.append(str(Path(__file__).resolve().parents[1]))
REQUIRED = [name for name in os.environ.get("STM_FAST_REQUIRE", "").split(",") if name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-cases", action="store_true", help="also run the cases that only make gate runs")
    parser.addoption("--few", type=int, metavar="N", help="run at most N cases of each test")
    parser.addoption("--one-in", type=int, metavar="N", help="run one in N of the remaining cases")


def absent_reasons() -> dict[str, list[str]]:
    """Why each backend, and a browser for the page, cannot be tested here."""
    backends = {f"backend {backend.name}": backend.absent_reasons() for backend in BACKENDS}
    return {**backends, "browser": browser.absent_reasons()}


def pytest_report_header() -> list[str]:
    return [f"{what}: {'; '.join(reasons) or 'available'}" for what, reasons in absent_reasons().items()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests that are not wanted or have passed before; starts slow tests first, so that no worker waits."""
    kept = items
    if not config.getoption("all_cases"):
        kept = [item for item in kept if item.get_closest_marker("experimental") is None]
        if gate_record.passed_before("compiled"):
            kept = gate_record.compiled_again(kept)
    if (most := config.getoption("few")) is not None:
        kept = gate_record.few(kept, most)
    if (many := config.getoption("one_in")) is not None:
        kept = gate_record.one_in(kept, many)
    wanted = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("slow") is None)


def pytest_sessionstart() -> None:
    """STM_FAST_REQUIRE=cpp,browser: what is required and absent fails the run instead of skipping its tests."""
    absent = {what.split()[-1]: (what, reasons) for what, reasons in absent_reasons().items()}
    for name in REQUIRED:
        if name not in absent:
            pytest.exit(f"STM_FAST_REQUIRE: found {name!r}, expected some of {', '.join(absent)}", returncode=1)
        what, reasons = absent[name]
        if reasons:
            pytest.exit(f"STM_FAST_REQUIRE: {what} is absent: {'; '.join(reasons)}", returncode=1)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills torch.empty with NaN, in Python and C++, to detect elements that a kernel does not write."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)  # torch.manual_seed keeps a stack trace for each absent kind of device


@pytest.fixture(autouse=True)
def _no_plans() -> None:
    """No test reuses the plans of an earlier one, which may have changed how they are made."""
    forget_plans()
    tuned.file_of_tiles.cache_clear()


@pytest.fixture(autouse=True)
def _no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes more than ten seconds for a test, and a line about that stands before what is compared."""
    monkeypatch.setattr(progress, "_SECONDS", 3600.0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread: where tensors are small, waking the others costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for the tests of one module: the event loop of Playwright blocks those of other tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=browser.browser_path())
        yield program
        program.close()


@pytest.fixture
def visit(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """Servers and people who visit them, see `page_driver.Visit`."""
    from page_driver import Visit

    visit = Visit(chromium, tmp_path)
    yield visit
    visit.end()


class Golden(NamedTuple):
    """The published network with weights from a formula, a clip, and its logits; see golden/formulas.py."""

    model: STM
    frames: Tensor  # [T, 3, H, W] in [0, 1]
    planes: Tensor  # [O, H, W], the objects of frame 0
    logits: Tensor  # [T - 1, 1 + O, H, W], of frames 1, 2, ...
    every: int


@pytest.fixture(scope="session")
def golden() -> Golden:
    spec = importlib.util.spec_from_file_location("formulas", GOLDEN / "formulas.py")
    assert spec is not None
    assert spec.loader is not None
    formulas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formulas)
    stored = np.load(GOLDEN / "formula_2obj.npz")
    objects, seed = int(stored["objects"]), int(stored["seed"])
    model = stm_resnet50().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            value = formulas.entry(published_name(name), tuple(tensor.shape), seed)
            if value is not None:
                tensor.copy_(torch.from_numpy(value))
    frames, ids = formulas.clip(len(stored["logits"]) + 1, *stored["logits"].shape[-2:], objects)
    planes = torch.from_numpy(ids[0]) == torch.arange(1, objects + 1)[:, None, None]  # [O, H, W]
    logits = torch.from_numpy(stored["logits"])
    return Golden(model, torch.from_numpy(frames), planes.float(), logits, int(stored["every"]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
