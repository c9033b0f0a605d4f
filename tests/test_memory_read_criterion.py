"""Outputs and gradients of every backend against float64: every case, every dtype, where the backend can run."""

import pytest
import torch

from stm_fast.ops import cpp_ops
from stm_fast.ops.backends import BACKENDS
from stm_fast.testing import CASES, ReadCase, check_case, make_tensors
from stm_fast.testing.cases import read_inputs
from stm_fast.testing.runs import leaves

HALVES = (torch.float16, torch.bfloat16)
# backend, device, dtype, with gradients. The reference runs the same code with and without them
RUNS = [
    *(("reference", "cpu", dtype, True) for dtype in (*HALVES, torch.float32, torch.float64)),
    *(("cpp", "cpu", dtype, grad) for dtype in (*HALVES, torch.float32, torch.float64) for grad in (False, True)),
]
if torch.cuda.is_available():
    dtypes = (*HALVES, torch.float32)
    on_gpu = [("reference", "cuda", dtype, True) for dtype in dtypes]
    on_gpu += [("triton", "cuda", dtype, grad) for dtype in dtypes for grad in (False, True)]
    RUNS += [pytest.param(*run, marks=pytest.mark.gpu) for run in on_gpu]


pytestmark = pytest.mark.usefixtures("one_thread")


# poisoned memory comes with PyTorch's deterministic mode, which warns about some of eager's CUDA kernels
@pytest.mark.filterwarnings("ignore:.*[Dd]eterministic:UserWarning")
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device", "dtype", "gradients"), RUNS, ids=str)
def test_no_worse_than_eager(backend, device, dtype, gradients, case):
    absent = next(entry for entry in BACKENDS if entry.name == backend).absent_reasons()
    if absent:
        pytest.skip("; ".join(absent))
    check_case(case, dtype, backend, device, gradients)


@pytest.mark.skipif(bool(cpp_ops.absent_reasons()), reason="; ".join(cpp_ops.absent_reasons()))
def test_all_options_together_are_supported_on_the_cpu():
    richest = ReadCase(similarity="l2", shrinkage=True, selection=True, top_k=7, return_usage=True, lengths=(97, 3))
    inputs = read_inputs(richest, leaves(make_tensors(richest, torch.float32), torch.float32, True))
    reasons = {backend.name: backend.unsupported_reasons(inputs) for backend in BACKENDS}
    assert reasons["reference"] == reasons["cpp"] == []
    assert reasons["triton"] == ["it runs on cuda tensors only, found cpu"]
