"""The instruction sets of the C++ engine, what they multiply, and cases in processes of their own with each."""

from pathlib import Path

import pytest

from processes import Ended, Running

SETS = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2", "portable", "emulated", "emulated_amx")
MULTIPLY_BFLOAT16 = ("amx", "avx512_bf16", "emulated", "emulated_amx")
MULTIPLY_BYTES = (*MULTIPLY_BFLOAT16, "avx512_vnni", "avx_vnni")
# with AMX, convolutions in bfloat16 are left to PyTorch
CONVOLVE_BFLOAT16 = ("avx512_bf16", "emulated")
# the tiles of AMX have another shape than those of the backward read's other products
BACKWARD_BFLOAT16 = ("avx512_bf16", "emulated")


def run_cases(instructions: str, cases: Path, folder: Path, *arguments: str) -> Ended:
    """A pytest of the cases with a set, in its own process, that ended well; skips if this machine lacks the set."""
    options = ["-q", "-p", "no:cacheprovider", *arguments, str(cases)]
    ended = Running(options, folder, "pytest", STM_FAST_CPU=instructions).wait()
    if "STM_FAST_CPU: found" in ended.stdout + ended.stderr:
        pytest.skip("this machine does not have it")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended
