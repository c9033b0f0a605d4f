"""Fuzzes the C++ engine: shapes, options, dtypes and strides from a list of seeds.

STM_FAST_FUZZ=40 uses more seeds than the default, as .ci/sanitize does under the sanitizers.
"""

import math
import os
import random

import pytest
import torch
from torch import Tensor

from quantized_reads import bounds, read
from stm_fast.choices import SIMILARITIES
from stm_fast.ops import cpp_ops, memory_read, read_rows
from stm_fast.ops.quantized import QuantizedMemory, quantize_memory
from stm_fast.testing import ReadCase, check_case, make_tensors, options
from stm_fast.testing.criterion import assert_no_worse_than_eager

pytestmark = [
    pytest.mark.skipif(bool(cpp_ops.absent_reasons()), reason="; ".join(cpp_ops.absent_reasons())),
    pytest.mark.usefixtures("poisoned_memory"),
]

SEEDS = range(int(os.environ.get("STM_FAST_FUZZ", "12")))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def random_case(draw: random.Random) -> ReadCase:
    batch, rows = draw.randint(1, 3), draw.choice([0, 1, 7, 8, 191, 193, draw.randint(2, 500)])
    similarity = draw.choice(SIMILARITIES)
    l2 = similarity == "l2"
    return ReadCase(
        batch=batch,
        queries=draw.choice([0, 1, 23, 48, 49, 265, draw.randint(2, 200)]),
        rows=rows,
        key_dim=draw.randint(1, 40),
        value_dim=draw.choice([32, 64, draw.randint(0, 40)]),
        shared_query=draw.random() < 0.3,
        shared_key=draw.random() < 0.3,
        lengths=tuple(draw.randint(0, rows) for _ in range(batch)) if draw.random() < 0.4 else None,
        poison=draw.choice([math.nan, math.inf]),
        similarity=similarity,
        shrinkage=l2 and draw.random() < 0.6,
        selection=l2 and draw.random() < 0.6,
        query_norm=draw.random() < 0.7,
        top_k=draw.randint(1, 200) if draw.random() < 0.3 else None,
        return_usage=draw.random() < 0.5,
    )


def elsewhere(tensor: Tensor, draw: random.Random) -> Tensor:
    """The same numbers at the very end of a storage, with dimensions in another order and gaps between them."""
    order = draw.sample(range(tensor.ndim), tensor.ndim)
    steps = [draw.choice([1, 1, 2, 3]) for _ in order]
    moved = tensor.permute(order)
    sizes = [max(0, (size - 1) * step + 1) for size, step in zip(moved.shape, steps, strict=True)]
    roomy = torch.empty(sizes, dtype=tensor.dtype).fill_(99)  # not NaN, which int8 lacks
    view = roomy[tuple(slice(None, None, step) for step in steps)].copy_(moved)
    view = view.permute([order.index(dimension) for dimension in range(tensor.ndim)])
    # an expanded batch has a stride of 0
    return view.expand(3, *view.shape[1:])[:1] if view.shape[0] == 1 else view


@pytest.mark.parametrize("seed", SEEDS)
def test_reads(seed):
    draw = random.Random(seed)
    case, dtype = random_case(draw), draw.choice(DTYPES)
    check_case(case, dtype, "cpp")
    tensors = make_tensors(case, dtype)
    keeps_some = case.top_k is not None and case.top_k < case.rows  # otherwise the reference makes the weights
    results = []
    for given in (tensors, [None if t is None else elsewhere(t, draw) for t in tensors]):
        extras = {"shrinkage": given[3], "selection": given[4], **options(case)}
        requested = {"return_lse": True, "return_usage": True, "return_top_k": keeps_some}
        results.append(memory_read(*given[:3], **extras, **requested, backend="cpp"))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_reads_of_kept_rows(seed):
    draw = random.Random(seed)
    batch, rows, queries, kept = (draw.randint(low, high) for low, high in ((1, 3), (1, 300), (0, 70), (0, 40)))
    width, dtype = draw.choice([64, 130, draw.randint(0, 40)]), draw.choice(DTYPES)
    generator = torch.Generator().manual_seed(seed)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    weights = torch.rand(draw.choice([1, batch]), queries, kept, generator=generator).to(accumulated)
    index = torch.randint(-1, rows, weights.shape, generator=generator)
    value = torch.randn(batch, rows, width, generator=generator).to(dtype)
    upstream = torch.randn(batch, queries, width, generator=generator).to(dtype)
    results = []
    for moved in (lambda tensor: tensor, lambda tensor: elsewhere(tensor, draw)):
        given = moved(weights).requires_grad_(), moved(index), moved(value).requires_grad_()
        out = read_rows(*given, backend="cpp")
        results.append((out, *torch.autograd.grad(out, (given[0], given[2]), moved(upstream))))
    for contiguous, strided in zip(*results, strict=True):
        assert torch.equal(strided, contiguous)
    leaves = weights.double().requires_grad_(), value.double().requires_grad_()
    exact = read_rows(leaves[0], index, leaves[1], backend="reference")
    expected = exact, *torch.autograd.grad(exact, leaves, upstream.double())
    # results are rounded once, their sums of up to 900 products at each step
    rounding = 2 * torch.finfo(dtype).eps + 512 * torch.finfo(accumulated).eps
    for contiguous, tensor in zip(results[0], expected, strict=True):
        torch.testing.assert_close(contiguous.double(), tensor, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("seed", SEEDS)
def test_reads_of_8_bit_memory(seed):
    draw = random.Random(seed)
    batch, slots, rows = draw.randint(1, 3), draw.randint(0, 5), draw.choice([1, 5, 48, 100, 200])
    key_batch, key_dim, value_dim = draw.choice([1, batch]), draw.randint(1, 40), draw.randint(0, 40)
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(draw.choice([1, batch]), draw.randint(0, 60), key_dim, generator=generator)
    key = torch.randn(key_batch, slots, rows, key_dim, generator=generator)
    value = torch.randn(batch, slots, rows, value_dim, generator=generator)
    memory = quantize_memory(key, value, draw.choice([torch.int8, torch.float8_e4m3fn]))
    lengths = [draw.randint(0, slots * rows) for _ in range(batch)] if draw.random() < 0.5 else None
    moved = QuantizedMemory(*(elsewhere(tensor, draw) for tensor in memory))
    found = read(query, memory, lengths)
    for name, strided in read(elsewhere(query, draw), moved, lengths).items():
        assert torch.equal(strided, found[name])
    assert_no_worse_than_eager(found, *bounds(query, memory, lengths))
