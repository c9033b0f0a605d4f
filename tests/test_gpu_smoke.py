"""A quick check of each kernel against float64, at the published size or a tiny one. Stage 1 of make gpu.

The cases have the names in gpu_times.LAUNCHING: later stages do not launch a kernel that hangs here.
"""

from contextlib import nullcontext

import pytest
import torch

from gpu_times import portable_tile
from stm_fast.kernels.tuned import using
from stm_fast.ops.quantized import memory_read_quantized, quantize_memory
from stm_fast.testing import ReadCase, check_case
from stm_fast.testing.quantized import exact_read, relative_error, soft_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("poisoned_memory"),
]


QUERIES = {"published": 1620, "tiny": 33}  # and two frames in memory


@pytest.mark.parametrize("name", ["rows", "portable", "channels"])
@pytest.mark.parametrize("size", QUERIES)
def test_a_read_is_right(size, name):
    queries = QUERIES[size]
    case = ReadCase(
        queries=queries,
        rows=2 * queries,
        key_dim=128,
        value_dim=512,
        shared_query=True,
        channels_first=name == "channels",
    )
    with using(portable_tile(torch.bfloat16, {})) if name == "portable" else nullcontext():
        check_case(case, torch.bfloat16, "triton", "cuda", gradients=False)


# the largest errors, as in tests/quantized_engine_cases.py for normal numbers
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.int8, 0.014), (torch.float8_e4m3fn, 0.064)], ids=["int8", "fp8"])
@pytest.mark.parametrize("size", QUERIES)
def test_a_quantized_read_is_right(size, dtype, allowed):
    rows = QUERIES[size]
    query, key, value = soft_memory(queries=rows, slots=2, rows=rows, key_dim=128, value_dim=512, device="cuda")
    out = memory_read_quantized(query.bfloat16(), quantize_memory(key, value, dtype), backend="triton")
    assert relative_error(out, exact_read(query, key, value)[0]) <= allowed
