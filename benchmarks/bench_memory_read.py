"""Times the memory read with pytest-benchmark: pytest benchmarks --benchmark-only.

One pass, shape and route at a time, for comparing commits (--benchmark-autosave, --benchmark-compare). For comparing
routes use stm-fast benchmark: there they take turns.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from stm_fast.benchmarking import PASSES, ROUTES, Workload, parse_shape
from stm_fast.benchmarking.inputs import in_layout, make_inputs
from stm_fast.benchmarking.routes import OURS
from stm_fast.benchmarking.timing import make_call

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = ["480p-T1-O1", "480p-T20-O1", "480p-T20-O3"] if DEVICE == "cuda" else ["480p-T1-O1", "480p-T5-O1"]
DTYPES = [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32]
# nothing that has to be compiled first
NAMES = ["published", "last-dim", "chunks", "sdpa", "sdpa-flash-split", *OURS]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", NAMES)
def bench_memory_read(benchmark: BenchmarkFixture, name: str, pass_name: str, shape: str, dtype: torch.dtype) -> None:
    workload = Workload(parse_shape(shape), dtype, pass_name, DEVICE)
    route = ROUTES[name]
    read = route.build(workload)
    if isinstance(read, str):
        pytest.skip(read)
    call = make_call(pass_name, read)
    inputs = in_layout(make_inputs(workload.shape, dtype, DEVICE, seed=0), route.layout)

    def finished(state: object) -> None:
        call.timed(state)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    try:
        finished(call.before(inputs))
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))
    benchmark.group = f"{pass_name} {shape} {dtype}"
    benchmark.pedantic(finished, setup=lambda: ((call.before(inputs),), {}), rounds=7)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["gflop_per_second"] = round(workload.flop / benchmark.stats.stats.median / 1e9, 1)
    benchmark.extra_info["threads"] = torch.get_num_threads()
