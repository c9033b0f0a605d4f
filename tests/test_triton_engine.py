"""Runs the cases of the kernels in processes of their own: whether Triton interprets is decided when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gate_record

TESTS = Path(__file__).parent
CASES = [str(TESTS / "triton_engine_cases.py"), str(TESTS / "quantized_engine_cases.py")]


def run_cases(*arguments: str, **environment: str) -> str:
    """The output of a pytest of them, which must all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    child = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


@pytest.mark.slow
def test_kernels_are_right_under_the_interpreter() -> None:
    """And calls that are known, which have no Triton otherwise where there is no GPU."""
    sample = gate_record.INTERPRETED_AGAIN if gate_record.passed_before("interpreted") else ()
    selected = ["-m", "not gpu", "-k", "triton or quantized", *sample]
    assert "skipped" not in run_cases(*selected, *CASES, str(TESTS / "test_known_calls.py"), TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_kernels_are_right_on_the_device() -> None:
    run_cases(*CASES, TRITON_INTERPRET="0")
