"""The benchmark on a CUDA device: timing with events, the allocator's memory, TF32."""

import pytest
import torch

from stm_fast.benchmarking.reads import time_routes
from stm_fast.benchmarking.shapes import Selection, parse_shape
from stm_fast.benchmarking.workload import PASSES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROUTES = ("published", "published-tf32", "last-dim", "chunks", "sdpa-efficient", "triton", "int8")


def test_routes_on_a_gpu_once():
    dtypes = ("bfloat16", "float32")
    selection = Selection((parse_shape("8x14-T2-O2"),), dtypes, PASSES, ROUTES, "cuda", seconds=0.0, rounds=2)
    found = [row for rows in time_routes(selection) for row in rows]
    timed = {(row.dtype, row.route, row.pass_name): row for row in found if row.seconds is not None}
    skipped = [(row.route, row.skipped) for row in found if row.skipped]
    for dtype in ("bfloat16", "float32"):
        assert (dtype, "torch.mm", "matrix product") in timed
        for route in ("published", "last-dim", "chunks", "triton"):
            assert (dtype, route, "forward") in timed, skipped
            row = timed[dtype, route, "forward"]
            assert row.seconds > 0
            assert row.error < 0.05
            assert row.extra_bytes >= 0
        quantized = timed[dtype, "int8", "forward"]
        assert 0 < quantized.error < 0.05
    assert ("float32", "published-tf32", "forward") in timed
    assert ("bfloat16", "published-tf32", "forward") not in timed
