"""The choice of the C++ engine's instruction set, and each set by itself: one a process, because it is chosen once."""

import shutil
import subprocess
from pathlib import Path

import pytest

from instruction_sets import SETS, run_cases
from processes import Running
from stm_fast.ops import cpp_ops

pytestmark = pytest.mark.skipif(bool(cpp_ops.absent_reasons()), reason="; ".join(cpp_ops.absent_reasons()))

CASES = Path(__file__).with_name("cpu_instructions_cases.py")
REFUSAL = "stm-fast: STM_FAST_CPU: found 'abacus', expected one of "


@pytest.fixture(scope="module")
def sets_that_are_here(tmp_path_factory) -> list[str]:
    """As the refusal of another one lists them."""
    ended = Running(["info"], tmp_path_factory.mktemp("abacus"), STM_FAST_CPU="abacus").wait()
    assert ended.returncode == 2
    assert ended.stderr.startswith(REFUSAL)
    return ended.stderr.removeprefix(REFUSAL).strip().split(", ")


@pytest.mark.slow
def test_an_instruction_set_that_the_cpu_lacks_is_refused_with_a_list(sets_that_are_here, tmp_path):
    assert sets_that_are_here[-3:] == ["portable", "emulated", "emulated_amx"]
    demo = ["demo", "--output", str(tmp_path / "demo"), "--arch", "resnet18"]
    ended = Running(demo, tmp_path, STM_FAST_CPU="abacus").wait()
    assert (ended.returncode, ended.stderr) == (2, f"{REFUSAL}{', '.join(sets_that_are_here)}\n")
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.parametrize("instructions", SETS)
def test_every_set_is_right(instructions, tmp_path):
    assert "skipped" not in run_cases(instructions, CASES, tmp_path).stdout


def test_the_binary_multiplies_bfloat16_with_the_instruction_for_it():
    from stm_fast import _C

    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    if "zmm" not in listing:
        pytest.skip("the binary is not for x86-64")
    # two products of 8 rows by 3 vectors
    assert sum("vdpbf16ps" in line and "zmm" in line for line in listing.splitlines()) >= 2 * 8 * 3
    # the same of bytes, with vectors of 512 and of 256 bits, those in groups of 4 rows
    assert sum("vpdpbusd" in line and "zmm" in line for line in listing.splitlines()) >= 2 * 8 * 3
    assert sum("vpdpbusd" in line and "ymm" in line for line in listing.splitlines()) >= 2 * 4 * 3
    # two products of 2 by 2 tiles
    assert sum("tdpbf16ps" in line for line in listing.splitlines()) >= 2 * 2 * 2
