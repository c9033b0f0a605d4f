"""The Triton kernel that reads a quantized memory, on a GPU or under the interpreter.

Not collected by itself: test_triton_engine.py runs it in a process of its own.
"""

import os

import pytest
import torch
from torch import Tensor

from stm_fast.ops import merge_reads
from stm_fast.ops.quantized import QuantizedMemory, memory_read_quantized, quantize_memory
from stm_fast.testing.quantized import exact_read, relative_error, soft_memory, stm_like_memory

torch.set_num_threads(1)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.int8, torch.float8_e4m3fn]
QUERY_DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16, torch.float32]
# of the result, relative to float64 of the numbers before they were quantized: (STM-like, Gaussian)
LARGEST_ERROR = {torch.int8: (0.008, 0.014), torch.float8_e4m3fn: (0.036, 0.064)}

if INTERPRETED:
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_rounding_up(data, source, target, rounding):
        """The interpreter's conversion, which loses the carry where fp8 rounds up to the next power of two."""
        if str(source) == "fp32" and str(target) == "fp8e4nv":
            return torch.from_numpy(data.copy()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return convert(data, source, target, rounding)

    interpreter._convert_float = convert_rounding_up


def read(query: Tensor, memory: QuantizedMemory, lengths: list[int] | None = None) -> tuple[Tensor, Tensor]:
    there = None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    return memory_read_quantized(query, memory, lengths=there, return_lse=True, backend="triton")


@pytest.mark.parametrize("query_dtype", QUERY_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [stm_like_memory, soft_memory])
def test_error_against_float64(make, dtype: torch.dtype, query_dtype: torch.dtype) -> None:
    query, key, value = make(queries=64, slots=3, rows=80, key_dim=128, value_dim=128, device=DEVICE)
    out, lse = read(query.to(query_dtype), quantize_memory(key, value, dtype))
    exact_out, exact_lse = exact_read(query, key, value)
    error = relative_error(out, exact_out)
    print(f"{make.__name__} {dtype} queries {query_dtype}: {error:.2e}")
    assert error < LARGEST_ERROR[dtype][make is soft_memory]
    # scores go up to some 140
    assert (lse - exact_lse).abs().max() < (0.2 if dtype == torch.int8 else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [None, [0, 120], [1, 40], [41, 80], [119, 3]])
def test_lengths_and_odd_sizes(dtype: torch.dtype, lengths: list[int] | None) -> None:
    query, key, value = soft_memory(queries=33, slots=3, rows=40, key_dim=33, value_dim=130, device=DEVICE)
    out, lse = read(query, quantize_memory(key, value, dtype), lengths)
    exact_out, exact_lse = exact_read(query, key, value, lengths)
    assert relative_error(out, exact_out) < (0.02 if dtype == torch.int8 else 0.1)
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    assert (out[exact_lse == -torch.inf] == 0).all()


@pytest.mark.parametrize("first", [0, 20])
@pytest.mark.parametrize("spare", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slots_that_do_not_count_may_hold_anything(dtype: torch.dtype, spare: float, first: int) -> None:
    query, key, value = soft_memory(queries=9, slots=4, rows=20, key_dim=16, value_dim=24, device=DEVICE)
    memory = quantize_memory(key, value, dtype)
    expected = read(query, memory, [first, 60])
    for tensor in memory:
        if tensor.dtype != torch.int8:
            tensor[0, first // 20 :], tensor[1, 3:] = spare, spare
    found = read(query, memory, [first, 60])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_split_memory_gives_the_same(dtype: torch.dtype) -> None:
    query, key, value = soft_memory(queries=4, slots=5, rows=200, key_dim=16, value_dim=24, batch=1, device=DEVICE)
    memory = quantize_memory(key, value, dtype)
    whole = read(query, memory)
    parts = [read(query, memory.slots(first, first + 1)) for first in range(5)]
    out, lse = merge_reads([part[0] for part in parts], [part[1] for part in parts])
    torch.testing.assert_close(lse, whole[1], rtol=0, atol=1e-3)
    # fp8 weights are rounded relative to the largest score so far, which is another in each part
    assert relative_error(out, whole[0]) < (1e-3 if dtype == torch.int8 else 0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_that_are_zero_or_tiny_in_some_slots(dtype: torch.dtype) -> None:
    query, key, value = soft_memory(queries=9, slots=4, rows=20, key_dim=16, value_dim=24, device=DEVICE)
    value[:, 0, :, 3] = 0
    value[:, 2, :, 4] = 0
    value[:, :, :, 5] = 0
    value[:, 1, :, 6] *= 1e-18
    out, _ = read(query, quantize_memory(key, value, dtype))
    assert relative_error(out, exact_read(query, key, value)[0]) < (0.02 if dtype == torch.int8 else 0.1)
    assert (out[..., 5] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_keys_and_any_strides(dtype: torch.dtype) -> None:
    query, key, value = soft_memory(queries=9, slots=2, rows=20, key_dim=16, value_dim=24, device=DEVICE)
    memory = quantize_memory(key[:1], value, dtype)
    spread_out = [torch.stack([tensor] * 3, -1)[..., 1] for tensor in memory]
    found, expected = read(query[:1], QuantizedMemory(*spread_out)), read(query[:1], memory)
    torch.testing.assert_close(found[0], expected[0])
    assert relative_error(found[0], exact_read(query[:1], key[:1], value)[0]) < (0.02 if dtype == torch.int8 else 0.1)
