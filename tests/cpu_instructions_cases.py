"""The C++ engine with the tile kernels that STM_FAST_CPU names.

Not collected by itself: test_cpp_instructions.py runs it in processes of its own.
"""

import os

import pytest
import torch
from torch.nn import functional as F

from convolutions import assert_near_direct, by_winograd, random_conv
from instruction_sets import BACKWARD_BFLOAT16, CONVOLVE_BFLOAT16, MULTIPLY_BFLOAT16, MULTIPLY_BYTES
from quantized_reads import bounds, read
from stm_fast import _C, memory_read
from stm_fast.ops.quantized import memory_read_quantized, quantize_memory
from stm_fast.testing import ReadCase, check_case
from stm_fast.testing.criterion import assert_no_worse_than_eager
from stm_fast.testing.quantized import soft_memory

torch.set_num_threads(1)

# whole and broken panels of 48 queries, groups of 8 rows and of 8 channels, pairs of rows and of channels; few queries
# in groups of 8, of values in whole and broken strips of 32 channels; up to 4 queries that read rows in 16 streams;
# whole and broken tiles of 32 numbers by 16 rows
SHAPES = (
    ReadCase(batch=1, queries=290, rows=195, key_dim=16, value_dim=24),
    ReadCase(batch=1, queries=17, rows=401, key_dim=9, value_dim=96),
    ReadCase(batch=1, queries=33, rows=401, key_dim=9, value_dim=96),
    ReadCase(batch=1, queries=1, rows=50, key_dim=9, value_dim=31),
    ReadCase(batch=1, queries=1, rows=401, key_dim=64, value_dim=64),
    ReadCase(batch=1, queries=2, rows=613, key_dim=32, value_dim=96),
    ReadCase(batch=1, queries=4, rows=401, key_dim=16, value_dim=32),
    ReadCase(batch=1, queries=50, rows=195, key_dim=16, value_dim=24),
    ReadCase(batch=1, queries=50, rows=230, key_dim=71, value_dim=40),
    ReadCase(queries=97, rows=33, key_dim=17, value_dim=9, channels_first=True),
    ReadCase(queries=49, rows=7, key_dim=1, value_dim=1, lengths=(7, 0)),
    ReadCase(queries=3, rows=401, key_dim=9, value_dim=10, lengths=(401, 194), shared_key=True),
    ReadCase(spread=100.0),
)
RICH = (
    ReadCase(similarity="l2", shrinkage=True, selection=True, return_usage=True, lengths=(97, 40)),
    ReadCase(top_k=7, return_usage=True),
)


def test_the_kernels_asked_for_are_in_use() -> None:
    assert _C.instructions() == os.environ["STM_FAST_CPU"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [*SHAPES, *RICH], ids=str)
def test_no_worse_than_eager(case: ReadCase, dtype: torch.dtype) -> None:
    check_case(case, dtype, "cpp", "cpu", True)


# whole and broken panels, groups, quads and tiles, slots in one block and in several; slots of few rows
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ({"queries": 100, "slots": 2, "rows": 192, "key_dim": 16, "value_dim": 32}, None),
        ({"queries": 25, "slots": 3, "rows": 401, "key_dim": 9, "value_dim": 10}, [1203, 450]),
        ({"queries": 70, "slots": 2, "rows": 250, "key_dim": 71, "value_dim": 40}, None),
        ({"queries": 1, "slots": 9, "rows": 9, "key_dim": 3, "value_dim": 1}, [0, 47]),
        ({"queries": 49, "slots": 30, "rows": 3, "key_dim": 17, "value_dim": 9}, [90, 7]),
    ],
    ids=str,
)
def test_reads_of_8_bit_memory(sizes, lengths, dtype: torch.dtype) -> None:
    query, key, value = soft_memory(**sizes)
    memory = quantize_memory(key, value, dtype)
    assert_no_worse_than_eager(read(query, memory, lengths), *bounds(query, memory, lengths))


def test_products_are_of_the_numbers_that_the_set_multiplies() -> None:
    # instructions for bfloat16 take denormal numbers for 0, products of floats do not; only dot products are made of
    # bfloat16 numbers, and only for queries in more than half of the lanes, 48 or with AMX 32
    query, key = torch.ones(1, 25, 4, dtype=torch.bfloat16), torch.ones(1, 1, 4, dtype=torch.bfloat16)
    value = torch.full((1, 1, 3), 2.0**-130, dtype=torch.bfloat16)
    by_pairs = _C.instructions() in MULTIPLY_BFLOAT16
    assert (memory_read(query, key, value, backend="cpp") == 0).all() == by_pairs
    assert (memory_read(query[:, :16], key, value, backend="cpp") != 0).all()
    assert (memory_read(query, key, value, similarity="l2", backend="cpp") != 0).all()


def test_gradients_are_of_the_numbers_that_the_set_multiplies() -> None:
    # denormal numbers, as above: the gradient of a value is the sum of 25 of them, which is normal
    query, key = (torch.ones(1, count, 4, dtype=torch.bfloat16, requires_grad=True) for count in (25, 1))
    value = torch.ones(1, 1, 3, dtype=torch.bfloat16, requires_grad=True)
    memory_read(query, key, value, backend="cpp").backward(torch.full((1, 25, 3), 2.0**-130, dtype=torch.bfloat16))
    assert (value.grad == 0).all() == (_C.instructions() in BACKWARD_BFLOAT16)


def test_products_of_bytes_are_used_where_there_are_any() -> None:
    query, key, value = soft_memory(queries=9, slots=2, rows=40, key_dim=16, value_dim=24)
    memory = quantize_memory(key, value)
    found, exact = (memory_read_quantized(query, memory, backend=name) for name in ("cpp", "reference"))
    by_bytes = _C.instructions() in MULTIPLY_BYTES
    assert torch.allclose(found, exact, atol=1e-5) != by_bytes


# chunks of several tiles inside and at the borders; whole and broken panels of 16 channels, and pairs of them; enough
# weights for small tiles
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [(16, 24), (9, 7), (48, 130), (330, 400)], ids=str)
def test_convolutions_are_right(channels: tuple[int, int], dtype: torch.dtype) -> None:
    conv, x = random_conv(*channels, dtype), torch.randn(2, channels[0], 35, 38, dtype=dtype)
    out, weight, bias = by_winograd(conv, x), conv.weight, conv.bias
    assert_near_direct(out, lambda wide: F.conv2d(x.to(wide), weight.to(wide), bias.to(wide), padding=1), weight)


def test_the_choice_of_convolutions_is_that_of_the_set() -> None:
    assert _C.convolves_bfloat16() == (_C.instructions() in CONVOLVE_BFLOAT16)
