"""Merged reads of the parts of a memory equal the read of the whole."""

import math

import pytest
import torch

from stm_fast import memory_read, merge_reads
from stm_fast.testing import ReadCase, assert_no_worse_than_eager, make_tensors
from stm_fast.testing.rounding import rounded_once
from stm_fast.testing.runs import eager_outputs, leaves, random_upstream, read_outputs, with_gradients

CASE = ReadCase()
PARTS = [slice(0, 40), slice(40, 41), slice(41, 97)]


def merged_outputs(tensors, parts=PARTS):
    reads = [
        memory_read(tensors.query, tensors.key[:, part], tensors.value[:, part], return_lse=True) for part in parts
    ]
    return dict(zip(("out", "lse"), merge_reads(*zip(*reads, strict=True)), strict=True))


def test_the_whole_read_in_float64_with_its_gradients():
    tensors = leaves(make_tensors(CASE, torch.float64), torch.float64, True)
    merged, whole = merged_outputs(tensors), read_outputs(CASE, tensors, "auto")
    upstream = random_upstream(whole)
    torch.testing.assert_close(
        with_gradients(merged, tensors, upstream), with_gradients(whole, tensors, upstream), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_no_worse_than_eager(dtype, spread):
    case = ReadCase(spread=spread)
    tensors = make_tensors(case, dtype)
    doubles = leaves(tensors, torch.float64, False)
    assert_no_worse_than_eager(
        fused=merged_outputs(tensors),
        eager=eager_outputs(case, tensors),
        rounded=rounded_once(case, doubles, dtype, {}),
        exact=read_outputs(case, doubles, "reference"),
    )


def test_one_part_is_unchanged():
    tensors = make_tensors(CASE, torch.float32)
    out, lse = memory_read(*tensors[:3], return_lse=True)
    merged_out, merged_lse = merge_reads([out], [lse])
    assert torch.equal(merged_out, out)
    assert torch.equal(merged_lse, lse)


def test_the_order_of_the_parts_does_not_matter():
    tensors = make_tensors(CASE, torch.float64)
    torch.testing.assert_close(merged_outputs(tensors), merged_outputs(tensors, PARTS[::-1]))


def test_an_empty_part_adds_nothing():
    tensors = leaves(make_tensors(CASE, torch.float64), torch.float64, True)
    with_empty = merged_outputs(tensors, [slice(0, 0), slice(0, 97), slice(97, 97)])
    whole = read_outputs(CASE, tensors, "auto")
    upstream = random_upstream(whole)
    torch.testing.assert_close(with_gradients(with_empty, tensors, upstream), with_gradients(whole, tensors, upstream))


def test_only_empty_parts_are_an_empty_read():
    out = torch.zeros(2, 3, 4, requires_grad=True)
    lse = torch.full((2, 3), -math.inf, requires_grad=True)
    merged_out, merged_lse = merge_reads([out, out], [lse, lse])
    assert torch.equal(merged_out, torch.zeros(2, 3, 4))
    assert torch.equal(merged_lse, torch.full((2, 3), -math.inf))
    gradients = torch.autograd.grad([merged_out, merged_lse], [out, lse], [torch.ones(2, 3, 4), torch.ones(2, 3)])
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_a_part_may_be_empty_for_one_object():
    # as in a bank whose second object has no rows in the second part
    tensors = make_tensors(CASE, torch.float64)
    parts = [
        memory_read(tensors.query, tensors.key[:, part], tensors.value[:, part], lengths=lengths, return_lse=True)
        for part, lengths in ((slice(0, 40), None), (slice(40, 97), torch.tensor([57, 0])))
    ]
    out, lse = merge_reads(*zip(*parts, strict=True))
    whole = memory_read(*tensors[:3], lengths=torch.tensor([97, 40]), return_lse=True)
    torch.testing.assert_close((out, lse), whole)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_huge_normalizers_do_not_overflow(offset):
    outs = [torch.zeros(1, 1, 1), torch.ones(1, 1, 1)]
    out, lse = merge_reads(outs, [torch.full((1, 1), offset), torch.full((1, 1), offset)])
    torch.testing.assert_close(out, torch.full((1, 1, 1), 0.5))
    torch.testing.assert_close(lse, torch.full((1, 1), offset + math.log(2)))


def test_dtypes():
    tensors = make_tensors(CASE, torch.bfloat16)
    merged = merged_outputs(tensors)
    assert merged["out"].dtype == torch.bfloat16
    assert merged["lse"].dtype == torch.float32


def test_gradcheck():
    outs = [torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    lses = [torch.randn(1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *given: merge_reads(given[:3], given[3:]), (*outs, *lses))
