"""Outputs and gradients of every backend against float64: every case, every dtype, where the backend can run."""

import pytest
import torch

from stm_fast.ops.backends import BACKENDS
from stm_fast.testing import CASES, check_case

HALVES = (torch.float16, torch.bfloat16)
# backend, device, dtype, with gradients. The reference runs the same code with and without them
RUNS = [
    *(("reference", "cpu", dtype, True) for dtype in (*HALVES, torch.float32, torch.float64)),
    *(
        ("cpp", "cpu", dtype, grad)
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        for grad in (False, True)
    ),
]
if torch.cuda.is_available():
    dtypes = (*HALVES, torch.float32)
    on_gpu = [("reference", "cuda", dtype, True) for dtype in dtypes]
    on_gpu += [("triton", "cuda", dtype, grad) for dtype in dtypes for grad in (False, True)]
    RUNS += [pytest.param(*run, marks=pytest.mark.gpu) for run in on_gpu]

# what a backend does not have yet. Strict: once it is built the test fails until the name is taken out
NOT_BUILT = {"triton": {"l2", "top_k", "usage", "gradients"}}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # the cases are small: waking the other threads costs more than the work
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def needs(case, gradients):
    asked = {
        "l2": case.similarity == "l2",
        "top_k": case.top_k is not None and case.top_k < case.rows,
        "usage": case.return_usage,
        "gradients": gradients,
    }
    return {name for name, wanted in asked.items() if wanted}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device", "dtype", "gradients"), RUNS, ids=str)
def test_no_worse_than_eager(request, backend, device, dtype, gradients, case):
    absent = next(entry for entry in BACKENDS if entry.name == backend).absent_reasons()
    if absent:
        pytest.skip("; ".join(absent))
    missing = NOT_BUILT.get(backend, set()) & needs(case, gradients)
    if missing:
        reason = f"not built yet: {', '.join(sorted(missing))}"
        request.applymarker(pytest.mark.xfail(raises=NotImplementedError, reason=reason, strict=True))
    check_case(case, dtype, backend, device, gradients)
