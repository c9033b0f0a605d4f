"""Runs triton_engine_cases.py in processes of its own: whether Triton interprets is decided when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gate_record

CASES = Path(__file__).with_name("triton_engine_cases.py")


def run_cases(*options: str, **environment: str) -> str:
    """The output of a pytest of the cases, which must all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(CASES)]
    child = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


@pytest.mark.slow
def test_kernels_are_right_under_the_interpreter() -> None:
    sample = ["--few", str(gate_record.FEW)] if gate_record.passed_before("interpreted") else []
    assert "skipped" not in run_cases("-m", "not gpu", *sample, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_kernels_are_right_on_the_device() -> None:
    run_cases(TRITON_INTERPRET="0")
