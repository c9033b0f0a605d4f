"""The Hopper kernel on a GPU is no worse than eager, nor is the portable kernel in its place."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from stm_fast.kernels.configs import forward_config
from stm_fast.kernels.experimental import configs_hopper
from stm_fast.kernels.forward import hopper_module, plan_read
from stm_fast.kernels.plans import forget_plans
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.targets import target_of
from stm_fast.kernels.tiles import Choice
from stm_fast.kernels.tuned import using
from stm_fast.ops import memory_read
from stm_fast.testing import ReadCase, check_case, make_tensors

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not IS_HOPPER, reason="there is no device of compute capability 9.0")

STM = ReadCase(queries=100, rows=300, key_dim=128, value_dim=512)
CASES = [
    STM,
    ReadCase(batch=1, queries=1, rows=1, key_dim=128, value_dim=512),
    *(replace(STM, rows=rows) for rows in (1, 63, 64, 65, 128, 129, 192, 1000)),
    *(replace(STM, queries=queries) for queries in (1, 64, 65, 200)),
    *(replace(STM, key_dim=key_dim) for key_dim in (8, 64, 72, 120)),
    *(replace(STM, lengths=lengths) for lengths in ((300, 0), (1, 64), (65, 200))),
    replace(STM, shared_query=True),
    replace(STM, shared_key=True, lengths=(40, 300)),
    replace(STM, batch=7, shared_query=True, shared_key=True),
    replace(STM, queries=20, rows=5000),  # so few queries that the memory is split
    replace(STM, queries=1620, rows=1620),
    replace(STM, spread=100.0),
    replace(STM, spread=0.0),
]


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(configs_hopper, "FEWEST_PAIRS", 0)
    forget_plans()
    yield
    forget_plans()


def launched_for(case: ReadCase) -> str:
    """The kernel that the read of a case launches."""
    query, key, value = make_tensors(case, torch.bfloat16, "cuda")[:3]
    target = target_of(query.device)
    problem = Problem(query, key, value, None, None, None, 1.0, False, None, target, "half")
    return plan_read(problem)[2].kernel.__name__


@pytest.mark.gpu
@on_hopper
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_worse_than_eager(case: ReadCase, dtype: torch.dtype) -> None:
    assert launched_for(case) == "_forward_hopper_kernel"
    check_case(case, dtype, "triton", "cuda")


@pytest.mark.gpu
@on_hopper
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("case", [case for case in CASES if case.key_dim == 128], ids=str)
def test_the_portable_kernel_at_the_same_widths(case: ReadCase) -> None:
    choice = Choice(90, "half", 128, 512, regular=True, weighted=False)
    with using({("forward", choice): forward_config(choice)}):
        assert launched_for(case) == "_forward_kernel"
        check_case(case, torch.bfloat16, "triton", "cuda")


@pytest.mark.gpu
@on_hopper
def test_this_triton_has_the_required_gluon() -> None:
    assert hopper_module() is not None


@pytest.mark.gpu
@on_hopper
def test_a_bank_with_spare_capacity_is_read_in_place() -> None:
    query, key, value = make_tensors(STM, torch.bfloat16, "cuda")[:3]
    banks = [torch.full((2, 500, t.shape[2]), torch.nan, dtype=t.dtype, device="cuda") for t in (key, value)]
    for bank, rows in zip(banks, (key, value), strict=True):
        bank[:, :300] = rows
    lengths = torch.tensor([300, 300], dtype=torch.int32, device="cuda")
    found = memory_read(query, *banks, lengths=lengths, backend="triton")
    torch.testing.assert_close(found, memory_read(query, key, value, backend="triton"), rtol=0, atol=1e-2)


@pytest.mark.gpu
@on_hopper
def test_a_hundred_reads_are_bit_equal() -> None:
    query, key, value = make_tensors(replace(STM, queries=1620, rows=8100), torch.bfloat16, "cuda")[:3]
    first = memory_read(query, key, value, backend="triton")
    assert isinstance(first, torch.Tensor)
    for _ in range(99):
        again = memory_read(query, key, value, backend="triton")
        assert isinstance(again, torch.Tensor)
        assert torch.equal(first, again)
