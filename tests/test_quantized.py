"""The read of a quantized memory: its arguments, the reference and the C++ engine."""

import math
import os

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from quantized_reads import bounds, read
from stm_fast.ops import cpp_ops, quantized
from stm_fast.ops.quantized import QuantizedMemory, memory_read_quantized, quantize_memory
from stm_fast.testing.criterion import assert_no_worse_than_eager
from stm_fast.testing.quantized import exact_read, relative_error, soft_memory, stm_like_memory

torch.set_num_threads(1)

needs_cpp = pytest.mark.skipif(bool(cpp_ops.absent_reasons()), reason="; ".join(cpp_ops.absent_reasons()))

DTYPES = [torch.int8, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [stm_like_memory, soft_memory])
@pytest.mark.parametrize("lengths", [None, [0, 150]])
def test_the_reference_is_close_to_exact(make, dtype: torch.dtype, lengths: list[int] | None, monkeypatch) -> None:
    monkeypatch.setattr(quantized, "SCRATCH_BYTES", 1)  # one slot at a time
    query, key, value = make(queries=20, slots=3, rows=50, key_dim=64, value_dim=64)
    memory = quantize_memory(key, value, dtype)
    counts = None if lengths is None else torch.tensor(lengths)
    out, lse = memory_read_quantized(query, memory, lengths=counts, return_lse=True, backend="reference")
    exact_out, exact_lse = exact_read(query, *floats_of(memory), lengths)
    torch.testing.assert_close(out.double(), exact_out, rtol=0, atol=1e-4)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=1e-4)
    limit = 0.012 if dtype == torch.int8 else 0.05
    assert relative_error(out, exact_read(query, key, value, lengths)[0]) < limit


@needs_cpp
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("sizes", "lengths", "shared"),
    [
        ({"queries": 50, "slots": 3, "rows": 135, "key_dim": 128, "value_dim": 512}, None, False),
        ({"queries": 1, "slots": 40, "rows": 7, "key_dim": 9, "value_dim": 5}, [279, 100], True),
        ({"queries": 33, "slots": 2, "rows": 193, "key_dim": 17, "value_dim": 30}, [0, 386], False),
        ({"queries": 33, "slots": 3, "rows": 401, "key_dim": 16, "value_dim": 24}, [1, 900], True),
        ({"queries": 5, "slots": 300, "rows": 1, "key_dim": 1, "value_dim": 1}, [1, 299], True),
        ({"queries": 49, "slots": 20, "rows": 9, "key_dim": 3, "value_dim": 7}, [13, 180], False),
    ],
    ids=str,
)
def test_the_cpp_engine_is_as_accurate_as_its_roundings(sizes, lengths, shared, query_dtype, dtype) -> None:
    query, key, value = soft_memory(**sizes)
    query, memory = query.to(query_dtype), quantize_memory(key[:1] if shared else key, value, dtype)
    allowed = bounds(query, memory, lengths)
    if lengths is not None:  # rows beyond the lengths may hold anything
        for object_, count in enumerate(lengths):
            memory.value_scale[object_, -(-count // sizes["rows"]) :] = torch.nan
            if not shared:
                memory.key_mean[object_, -(-count // sizes["rows"]) :] = torch.nan
                memory.key_scale[object_].view(-1)[count:] = torch.nan
    for found in (memory, QuantizedMemory(*(torch.stack([tensor] * 3, -1)[..., 1] for tensor in memory))):
        assert_no_worse_than_eager(read(query, found, lengths), *allowed)


def without_spread(query, key, value):
    """All scores are equal: every weight is the largest one."""
    return query * 0, key, value


def hard(query, key, value):
    """One row has nearly all the weight."""
    return query * 30, key, value


def with_a_tail(query, key, value):
    """One row in a hundred has a weight that makes those of the others, together as large, less than half a step."""
    key, query = torch.zeros_like(key), torch.zeros_like(query)
    key[:, :, ::100, 0], query[..., 0] = 1, math.log(600) * math.sqrt(query.shape[-1])
    return query, key, value + 1


def of_very_different_slots(query, key, value):
    """Scales of keys and values, and largest scores, change from slot to slot, and those of values by channel too."""
    factor = torch.tensor([1.0, 1e-3, 4.0, 30.0])[:, None, None]
    return query, key * factor, value * factor.flip(0) * torch.logspace(-6, 6, value.shape[-1])


def of_very_different_queries(query, key, value):
    """They have a direction in common; some are tiny, some huge, and one is zero."""
    query = (query + 8) * torch.logspace(-30, 1, query.shape[1])[:, None]
    query[:, 3] = 0
    return query, key, value


@needs_cpp
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "change", [without_spread, hard, with_a_tail, of_very_different_slots, of_very_different_queries]
)
def test_the_cpp_engine_is_as_accurate_as_its_roundings_for_unusual_numbers(change, dtype) -> None:
    query, key, value = change(*soft_memory(queries=50, slots=4, rows=390, key_dim=32, value_dim=40))
    memory = quantize_memory(key, value, dtype)
    assert_no_worse_than_eager(read(query, memory, [1560, 500]), *bounds(query, memory, [1560, 500]))


@needs_cpp
def test_weights_too_small_for_a_byte_are_not_lost() -> None:
    query, key, value = with_a_tail(*soft_memory(queries=3, slots=2, rows=400, key_dim=32, value_dim=40))
    memory = quantize_memory(key, value)
    out = memory_read_quantized(query, memory, backend="cpp")
    # rounded one by one they would all become 0, a seventh of the sum
    assert relative_error(out, exact_read(query, *floats_of(memory))[0]) < 0.01


@needs_cpp
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [stm_like_memory, soft_memory])
def test_the_roundings_of_the_cpp_engine_at_most_double_the_error(make, dtype) -> None:
    query, key, value = make(queries=64, slots=4, rows=810, key_dim=128, value_dim=128)
    memory = quantize_memory(key, value, dtype)
    exact = exact_read(query, key, value)[0]
    by_bytes, by_floats = (memory_read_quantized(query, memory, backend=name) for name in ("cpp", "reference"))
    assert relative_error(by_bytes, exact) <= 2 * relative_error(by_floats, exact)


@needs_cpp
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_query_that_is_not_finite_changes_no_other(number: float, dtype: torch.dtype) -> None:
    query, key, value = soft_memory(queries=50, slots=2, rows=20, key_dim=16, value_dim=24)
    memory = quantize_memory(key, value, dtype)
    query[:, 7] = 0
    expected = memory_read_quantized(query, memory, backend="cpp")
    query[:, 7, 3] = number
    found = memory_read_quantized(query, memory, backend="cpp")
    assert found[:, 7].isnan().all()
    expected[:, 7] = torch.nan
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@needs_cpp
def test_queries_too_large_for_products_with_bytes_are_read() -> None:
    query, key, value = soft_memory(queries=9, slots=2, rows=20, key_dim=16, value_dim=24)
    memory = quantize_memory(key, value)
    options = {"scale": 1e-35, "return_lse": True}
    found, exact = (
        memory_read_quantized(query * 1e35, memory, backend=name, **options) for name in ("cpp", "reference")
    )
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=3e-2)


@needs_cpp
def test_values_that_overflow_in_sums_only_are_read() -> None:
    query, key, value = soft_memory(queries=9, slots=2, rows=20, key_dim=16, value_dim=24)
    memory = quantize_memory(key, value * 0 + 1e38)
    out = memory_read_quantized(query, memory, backend="cpp")
    torch.testing.assert_close(out, torch.full_like(out, 1e38))


@needs_cpp
def test_values_with_padded_rows_give_the_same_bits() -> None:
    query, key, value = soft_memory(queries=9, slots=3, rows=20, key_dim=16, value_dim=24)
    memory = quantize_memory(key, value, torch.float8_e4m3fn)
    dense = memory._replace(value=memory.value.contiguous())
    assert memory.value.stride() != dense.value.stride()
    assert torch.equal(*(memory_read_quantized(query, found, backend="cpp") for found in (memory, dense)))


@needs_cpp
def test_the_cpp_engine_is_a_well_behaved_operator() -> None:
    query, key, value = soft_memory(queries=9, slots=2, rows=20, key_dim=16, value_dim=24)
    memory = quantize_memory(key, value)
    flat = memory.key.flatten(1, 2), memory.key_scale.flatten(1), memory.key_mean.squeeze(2)
    values = memory.value, memory.value_scale.squeeze(2)
    operator = torch.ops.stm_fast.memory_read_quantized_cpp.default
    torch.library.opcheck(operator, (query, *flat, *values, torch.tensor([40, 9], dtype=torch.int32), 0.25))
    for changed in ((query.double(), *flat), (query[:, :, 1:], *flat), (query, flat[0].float(), *flat[1:])):
        with pytest.raises(RuntimeError, match=r"query: |key: |value: "):
            operator(*changed, *values, None, 0.25)


@needs_cpp
def test_the_cpp_engine_is_chosen_where_it_applies(caplog) -> None:
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("a faster engine is available")
    query, key, value = soft_memory(queries=2, slots=1, rows=3, key_dim=4, value_dim=5)
    memory = quantize_memory(key, value)
    with caplog.at_level("DEBUG", logger="stm_fast.ops.backends"):
        memory_read_quantized(query, memory)
        memory_read_quantized(query.double(), memory)
        memory_read_quantized(query.requires_grad_(), memory)
    lines = [record.getMessage() for record in caplog.records]
    chosen = [line for line in lines if line.startswith("quantized") and " not " not in line]
    assert chosen == [f"quantized_memory_read: {name}" for name in ("cpp", "reference", "reference")]


def floats_of(memory: QuantizedMemory) -> tuple[torch.Tensor, torch.Tensor]:
    key, value = memory.dequantized(torch.float64)
    return key[:, None], value[:, None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_off_by_at_most_half_a_step(dtype: torch.dtype) -> None:
    _, key, value = soft_memory(queries=1, slots=2, rows=30, key_dim=16, value_dim=24)
    value[0, 0, :, 2] = 0
    memory = quantize_memory(key + 5, value, dtype)
    found = memory.dequantized(torch.float32)
    half_steps = 0.5 / 127 if dtype == torch.int8 else 2.0**-4
    for rows, exact in zip(found, (key + 5, value), strict=True):
        error = (rows - exact.flatten(1, 2)).abs().amax()
        assert error <= half_steps * (exact - exact.mean(2, keepdim=True)).abs().max() * 1.2
    assert (found[1].view(2, 2, 30, 24)[0, 0, :, 2] == 0).all()
    assert memory.value.shape == (2, 2, 30, 24)


def test_fp8_values_have_the_layout_of_the_kernel() -> None:
    pytest.importorskip("triton")
    from stm_fast.kernels.forward_quantized import _is_padded

    _, key, value = soft_memory(queries=1, slots=2, rows=30, key_dim=16, value_dim=24)
    assert _is_padded(quantize_memory(key, value, torch.float8_e4m3fn).value)
    assert not _is_padded(quantize_memory(key, value, torch.int8).value)


def test_a_memory_without_rows_gives_zeros() -> None:
    memory = quantize_memory(torch.zeros(2, 0, 5, 8), torch.zeros(2, 0, 5, 8))
    out, lse = memory_read_quantized(torch.zeros(2, 3, 8), memory, return_lse=True)
    assert not out.any()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_cpp)])
def test_autocast_changes_nothing(backend) -> None:
    query, key, value = soft_memory(queries=20, slots=3, rows=50, key_dim=64, value_dim=64)
    memory = quantize_memory(key, value)
    expected = memory_read_quantized(query, memory, return_lse=True, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = memory_read_quantized(query, memory, return_lse=True, backend=backend)
    assert all(map(torch.equal, found, expected))


def test_lengths_beyond_int32_mean_all_rows() -> None:
    query, key, value = soft_memory(queries=20, slots=3, rows=50, key_dim=64, value_dim=64)
    memory = quantize_memory(key, value)
    found = memory_read_quantized(query, memory, lengths=torch.full((len(value),), 2**40))
    assert torch.equal(found, memory_read_quantized(query, memory))


# PyTorch's own warning, at its first forward-mode derivative
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@needs_cpp
def test_tangents_are_never_dropped() -> None:
    query, key, value = soft_memory(queries=20, slots=3, rows=50, key_dim=64, value_dim=64)
    memory = quantize_memory(key, value)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        assert forward_ad.unpack_dual(memory_read_quantized(dual, memory)).tangent is not None
        with pytest.raises(NotImplementedError, match="forward-mode"):
            memory_read_quantized(dual, memory, backend="cpp")


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_cpp)])
def test_numpy_numbers_and_negated_views_are_accepted(backend: str) -> None:
    query, key, value = soft_memory(queries=9, slots=2, rows=7, key_dim=8, value_dim=6)
    memory = quantize_memory(key, value)
    negated = torch.complex(query, -query).conj().imag
    found = memory_read_quantized(negated, memory, scale=np.float32(0.5), backend=backend)
    torch.testing.assert_close(found, memory_read_quantized(query, memory, scale=0.5, backend=backend))


def test_arguments_of_other_types_are_refused() -> None:
    memory, query = quantize_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6)), torch.zeros(2, 3, 8)
    with pytest.raises(TypeError, match="memory: found tuple, expected a QuantizedMemory"):
        memory_read_quantized(query, tuple(memory))
    with pytest.raises(TypeError, match="query: found list, expected a tensor"):
        memory_read_quantized([1.0], memory)
    with pytest.raises(TypeError, match=r"query: found torch.float8_e4m3fn, expected a float dtype"):
        memory_read_quantized(query.to(torch.float8_e4m3fn), memory)
    with pytest.raises(TypeError, match="key: found ndarray, expected a tensor"):
        quantize_memory(np.zeros((2, 3, 4, 8)), torch.zeros(2, 3, 4, 6))
    with pytest.raises(TypeError, match=r"value: found torch.complex64, expected a float dtype"):
        quantize_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6, dtype=torch.complex64))


def test_slots_without_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"key: found shape \(2, 3, 0, 8\), expected at least one row"):
        quantize_memory(torch.zeros(2, 3, 0, 8), torch.zeros(2, 3, 0, 6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": torch.zeros(2, 3, 4, 8)}, TypeError, "keys of torch.float32"),
        ({"key": torch.zeros(2, 3, 5, 8, dtype=torch.int8)}, ValueError, "whose widths or slots do not match"),
        ({"key_scale": torch.zeros(2, 3, 4)}, ValueError, r"key_scale: found torch.float32 \(2, 3, 4\)"),
        ({"key_mean": torch.zeros(2, 3, 1, 8).double()}, ValueError, "key_mean: found torch.float64"),
        ({"value_scale": torch.zeros(2, 3, 1, 7)}, ValueError, "value_scale"),
        ({"key": np.zeros((2, 3, 4, 8), np.int8)}, TypeError, "key: found ndarray, expected a tensor"),
        ({"key_mean": None}, TypeError, "key_mean: found NoneType, expected a tensor"),
    ],
)
def test_inconsistent_memories_are_refused(change, error: type[Exception], message: str) -> None:
    memory = quantize_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6))
    with pytest.raises(error, match=message):
        memory_read_quantized(torch.zeros(2, 3, 8), memory._replace(**change))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, ValueError, "lengths: found"),
        ({"lengths": torch.ones(2, dtype=torch.bool)}, ValueError, "lengths: found torch.bool"),
        ({"lengths": [1, 2]}, TypeError, "lengths: found list, expected a tensor or None"),
        ({"scale": True}, TypeError, "scale: found bool, expected a number or None"),
        ({"scale": np.float32(np.nan)}, ValueError, "scale: found nan, expected a finite number"),
        ({"return_lse": "no"}, TypeError, "return_lse: found str, expected True or False"),
        ({"backend": ["cpp"]}, ValueError, "backend: found list"),
        ({"backend": "abacus"}, ValueError, "backend: found 'abacus'"),
        ({"backend": "triton"}, NotImplementedError, "cannot run this quantized memory read: .+"),
    ],
)
def test_invalid_options_are_refused(options, error: type[Exception], message: str) -> None:
    memory = quantize_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6))
    with pytest.raises(error, match=message):
        memory_read_quantized(torch.zeros(2, 3, 8), memory, **options)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype: found torch\.uint8"):
        quantize_memory(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4, 6), torch.uint8)
