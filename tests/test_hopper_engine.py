"""The Hopper engine: refused with reasons where it cannot run, and no worse than eager where it can."""

from dataclasses import replace

import pytest
import torch

from stm_fast.ops import backends, hopper_ops, memory_read
from stm_fast.testing import ReadCase, check_case, make_tensors

on_hopper = pytest.mark.skipif(bool(hopper_ops.absent_reasons()), reason="; ".join(hopper_ops.absent_reasons()))

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


def test_auto_does_not_take_it() -> None:
    assert "hopper" not in [backend.name for backend in backends.BACKENDS]


@pytest.mark.skipif(not hopper_ops.absent_reasons(), reason="it can run here")
def test_where_it_cannot_run_it_says_why() -> None:
    query, key, value = make_tensors(STM, torch.float16)[:3]
    with pytest.raises(NotImplementedError, match=r"backend 'hopper' cannot run this memory read: .+"):
        memory_read(query, key, value, backend="hopper")


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_worse_than_eager(case: ReadCase, dtype: torch.dtype) -> None:
    check_case(case, dtype, "hopper", "cuda", gradients=False)


@pytest.mark.gpu
@on_hopper
def test_a_bank_with_spare_capacity_is_read_in_place() -> None:
    query, key, value = make_tensors(STM, torch.bfloat16, "cuda")[:3]
    banks = [torch.full((2, 500, t.shape[2]), torch.nan, dtype=t.dtype, device="cuda") for t in (key, value)]
    for bank, rows in zip(banks, (key, value), strict=True):
        bank[:, :300] = rows
    lengths = torch.tensor([300, 300], dtype=torch.int32, device="cuda")
    found = memory_read(query, *banks, lengths=lengths, backend="hopper")
    torch.testing.assert_close(found, memory_read(query, key, value, backend="hopper"), rtol=0, atol=1e-2)


@pytest.mark.gpu
@on_hopper
def test_a_hundred_reads_are_bit_equal() -> None:
    query, key, value = make_tensors(replace(STM, queries=1620, rows=8100), torch.bfloat16, "cuda")[:3]
    first = memory_read(query, key, value, backend="hopper")
    assert isinstance(first, torch.Tensor)
    for _ in range(99):
        again = memory_read(query, key, value, backend="hopper")
        assert isinstance(again, torch.Tensor)
        assert torch.equal(first, again)
