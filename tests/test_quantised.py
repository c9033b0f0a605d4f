"""The read of a quantised memory: what it takes, the path by floats, and the kernel in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stm_fast.ops import quantised
from stm_fast.ops.quantised import QuantisedMemory, memory_read_quantised, quantise_memory
from stm_fast.testing.quantised import exact_read, relative_error, soft_memory, stm_like_memory

torch.set_num_threads(1)

CASES = Path(__file__).with_name("quantised_engine_cases.py")
DTYPES = [torch.int8, torch.float8_e4m3fn]


def run_cases(**environment: str) -> str:
    """The output of a pytest of the cases, which must all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    child = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


@pytest.mark.slow
def test_the_kernel_is_right_under_the_interpreter() -> None:
    assert "skipped" not in run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_kernel_is_right_on_the_device() -> None:
    run_cases(TRITON_INTERPRET="0")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [stm_like_memory, soft_memory])
@pytest.mark.parametrize("lengths", [None, [0, 150]])
def test_the_path_by_floats(make, dtype: torch.dtype, lengths: list[int] | None, monkeypatch) -> None:
    monkeypatch.setattr(quantised, "SCRATCH_BYTES", 1)  # one slot at a time
    query, key, value = make(queries=20, slots=3, rows=50, key_dim=64, value_dim=64)
    memory = quantise_memory(key, value, dtype)
    there = None if lengths is None else torch.tensor(lengths)
    out, lse = memory_read_quantised(query, memory, lengths=there, return_lse=True)
    exact_out, exact_lse = exact_read(query, *floats_of(memory), lengths)
    torch.testing.assert_close(out.double(), exact_out, rtol=0, atol=1e-4)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=1e-4)
    limit = 0.012 if dtype == torch.int8 else 0.05
    assert relative_error(out, exact_read(query, key, value, lengths)[0]) < limit


def floats_of(memory: QuantisedMemory) -> tuple[torch.Tensor, torch.Tensor]:
    key, value = memory.dequantised(torch.float64)
    return key[:, None], value[:, None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_off_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    _, key, value = soft_memory(queries=1, slots=2, rows=30, key_dim=16, value_dim=24)
    value[0, 0, :, 2] = 0
    memory = quantise_memory(key + 5, value, dtype)
    found = memory.dequantised(torch.float32)
    half_steps = 0.5 / 127 if dtype == torch.int8 else 2.0**-4
    for rows, exact in zip(found, (key + 5, value), strict=True):
        error = (rows - exact.flatten(1, 2)).abs().amax()
        assert error <= half_steps * (exact - exact.mean(2, keepdim=True)).abs().max() * 1.2
    assert (found[1].view(2, 2, 30, 24)[0, 0, :, 2] == 0).all()
    assert memory.value.shape == (2, 2, 30, 24)


def test_fp8_values_lie_as_the_kernel_multiplies_them() -> None:
    pytest.importorskip("triton")
    from stm_fast.kernels.forward_quantised import _is_padded

    _, key, value = soft_memory(queries=1, slots=2, rows=30, key_dim=16, value_dim=24)
    assert _is_padded(quantise_memory(key, value, torch.float8_e4m3fn).value)
    assert not _is_padded(quantise_memory(key, value, torch.int8).value)


def test_no_rows_give_zeros() -> None:
    memory = quantise_memory(torch.zeros(2, 0, 5, 8), torch.zeros(2, 0, 5, 8))
    out, lse = memory_read_quantised(torch.zeros(2, 3, 8), memory, return_lse=True)
    assert not out.any()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": torch.zeros(2, 3, 4, 8)}, TypeError, "keys of torch.float32"),
        ({"key": torch.zeros(2, 3, 5, 8, dtype=torch.int8)}, ValueError, "do not fit together"),
        ({"key_scale": torch.zeros(2, 3, 4)}, ValueError, r"key_scale: found torch.float32 \(2, 3, 4\)"),
        ({"key_mean": torch.zeros(2, 3, 1, 8).double()}, ValueError, "key_mean: found torch.float64"),
        ({"value_scale": torch.zeros(2, 3, 1, 7)}, ValueError, "value_scale"),
    ],
)
def test_memories_that_do_not_fit_are_refused(change, error: type[Exception], message: str) -> None:
    memory = quantise_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6))
    with pytest.raises(error, match=message):
        memory_read_quantised(torch.zeros(2, 3, 8), memory._replace(**change))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, ValueError, "lengths: found"),
        ({"backend": "cpp"}, ValueError, "backend: found 'cpp'"),
        ({"backend": "triton"}, NotImplementedError, "cannot run this quantised memory read: .+"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error: type[Exception], message: str) -> None:
    memory = quantise_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6))
    with pytest.raises(error, match=message):
        memory_read_quantised(torch.zeros(2, 3, 8), memory, **options)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype: found torch\.uint8"):
        quantise_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6), torch.uint8)
