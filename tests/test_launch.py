"""The arguments of kernel launches, and the kernels that users' reads launch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.launch import arithmetic_of

CASES = Path(__file__).with_name("launch_cases.py")


@pytest.fixture
def _tf32_setting() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("_tf32_setting")
def test_float32_is_exact_unless_pytorch_is_allowed_tf32() -> None:
    assert arithmetic_of(torch.bfloat16) == arithmetic_of(torch.float16) == "half"
    for precision, arithmetic in (("ieee", "ieee"), ("tf32", "tf32x3")):
        torch.backends.cuda.matmul.fp32_precision = precision
        assert arithmetic_of(torch.float32) == arithmetic


@pytest.mark.slow
def test_reads_at_480p_launch_the_expected_tiles() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "launchless", "-p", "no:cacheprovider", str(CASES)]
    environment = {**os.environ, "PYTHONPATH": str(CASES.parent)}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr


def test_parts_without_value_channels_have_their_lse_combined() -> None:
    *_, launch = plan_combine(torch.empty(1, 2, 3, 0), torch.empty(1, 2, 3), torch.float32)
    assert 0 not in launch.grid
