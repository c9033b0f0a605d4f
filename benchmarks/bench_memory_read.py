"""Times the memory read on this machine: pytest benchmarks --benchmark-only.

On a GPU the time is that between two CUDA synchronisations; benchmarks/gpu_checks.py times with events.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from routes import CPU_ROUTES, GPU_ROUTES, make_inputs
from shapes import CPU_SHAPES, GPU_SHAPES, Shape

CUDA = torch.cuda.is_available()
DTYPES = [torch.float16, torch.bfloat16] if CUDA else [torch.float32]


@pytest.mark.parametrize("route", GPU_ROUTES if CUDA else CPU_ROUTES)
@pytest.mark.parametrize("shape", GPU_SHAPES if CUDA else CPU_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_forward(benchmark: BenchmarkFixture, route: str, shape: Shape, dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype, "cuda" if CUDA else "cpu")
    read = (GPU_ROUTES if CUDA else CPU_ROUTES)[route]

    def run() -> None:
        with torch.inference_mode():
            read(*inputs)
            if CUDA:
                torch.cuda.synchronize()

    benchmark.group = f"forward {shape} {dtype}"
    benchmark.pedantic(run, warmup_rounds=1, rounds=7)
    benchmark.extra_info["gflop_per_second"] = round(shape.flop / benchmark.stats.stats.median / 1e9, 1)
    benchmark.extra_info["threads"] = torch.get_num_threads()
