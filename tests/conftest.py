"""What every test run shares: which backends it has, and uninitialised memory that cannot pass for zeros."""

import os
from collections.abc import Iterator

import pytest
import torch

from stm_fast.ops.backends import BACKENDS

REQUIRED = [name for name in os.environ.get("STM_FAST_REQUIRE", "").split(",") if name]


def pytest_report_header() -> list[str]:
    absent = {backend.name: backend.absent_reasons() for backend in BACKENDS}
    return [f"backend {name}: {'; '.join(reasons) or 'here'}" for name, reasons in absent.items()]


def pytest_sessionstart() -> None:
    """STM_FAST_REQUIRE=cpp,triton: an expected backend that is absent fails the run, it does not thin it out."""
    reasons = {backend.name: backend.absent_reasons() for backend in BACKENDS}
    for name in REQUIRED:
        if name not in reasons:
            pytest.exit(f"STM_FAST_REQUIRE: found {name!r}, expected some of {', '.join(reasons)}", returncode=1)
        if reasons[name]:
            pytest.exit(f"STM_FAST_REQUIRE: backend {name} is absent: {'; '.join(reasons[name])}", returncode=1)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty, in Python and in C++, gives NaN: a kernel that leaves an element unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
