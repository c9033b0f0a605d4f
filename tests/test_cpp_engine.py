"""The C++ engine beyond the common cases: gradcheck, threads, strides, spare rows, every block boundary."""

import itertools
import math
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stm_fast.ops import cpp_ops, memory_read
from stm_fast.testing import ReadCase, check_case, make_tensors

pytestmark = [
    pytest.mark.skipif(bool(cpp_ops.absent_reasons()), reason="; ".join(cpp_ops.absent_reasons())),
    pytest.mark.usefixtures("poisoned_memory"),
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def read_and_gradients(case: ReadCase, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    tensors = [None if t is None else t.requires_grad_() for t in make_tensors(case, dtype)]
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    out, lse = memory_read(*tensors[:3], lengths=lengths, return_lse=True, backend="cpp")
    gradients = torch.autograd.grad([out, lse], tensors[:3], [torch.ones_like(out), torch.ones_like(lse)])
    return [out, lse, *gradients]


# around the panels of 24 queries, the blocks of 144 queries and of 128 rows
@pytest.mark.parametrize("queries", [23, 24, 25, 143, 144, 145, 300])
@pytest.mark.parametrize("rows", [127, 128, 129, 513])
def test_block_boundaries(queries, rows):
    check_case(ReadCase(batch=1, queries=queries, rows=rows, key_dim=9, value_dim=5), torch.float32, "cpp")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        ReadCase(batch=1, queries=3, rows=1000, key_dim=8, value_dim=8),
        ReadCase(batch=3, queries=50, rows=300, lengths=(300, 0, 129)),
        ReadCase(batch=3, queries=50, rows=300, shared_key=True, shared_query=True, lengths=(300, 0, 129)),
        ReadCase(batch=3, queries=30, rows=300, shared_key=True, lengths=(1, 200, 129)),
    ],
    ids=str,
)
def test_any_number_of_threads(case, dtype, threads):
    check_case(case, dtype, "cpp")


@pytest.mark.parametrize(
    "case", [ReadCase(queries=200, rows=700), ReadCase(shared_key=True, queries=9, rows=700)], ids=str
)
def test_two_runs_are_equal_to_the_bit(case, threads):
    for first, second in zip(read_and_gradients(case), read_and_gradients(case), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_change_a_bit(dtype):
    case = ReadCase(queries=30, rows=140, key_dim=11, value_dim=13)
    tensors = make_tensors(case, dtype)[:3]
    expected = memory_read(*tensors, backend="cpp")
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        strided = [with_strides(t, order) for t, order in zip(tensors, orders, strict=True)]
        assert torch.equal(memory_read(*strided, backend="cpp"), expected)


def with_strides(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same numbers laid out in the given order of dimensions, with gaps of NaN between them."""
    shape = [2 * tensor.shape[dimension] for dimension in order]
    roomy = torch.full(shape, math.nan, dtype=tensor.dtype)[tuple(slice(None, None, 2) for _ in order)]
    view = roomy.permute([order.index(dimension) for dimension in range(3)])
    return view.copy_(tensor)


def test_gradcheck():
    tensors = [
        t.requires_grad_() for t in make_tensors(ReadCase(queries=4, rows=6, key_dim=3, value_dim=2), torch.float64)[:3]
    ]
    lengths = torch.tensor([6, 4])

    def read(*inputs: Tensor) -> tuple[Tensor, ...]:
        return memory_read(*inputs, lengths=lengths, return_lse=True, backend="cpp")

    assert torch.autograd.gradcheck(read, tensors)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_fuzz(data):
    batch = data.draw(st.integers(1, 3))
    rows = data.draw(st.integers(0, 300))
    case = ReadCase(
        batch=batch,
        queries=data.draw(st.integers(0, 60)),
        rows=rows,
        key_dim=data.draw(st.integers(1, 40)),
        value_dim=data.draw(st.integers(0, 40)),
        shared_query=data.draw(st.booleans()),
        shared_key=data.draw(st.booleans()),
        lengths=data.draw(st.none() | st.tuples(*[st.integers(0, rows)] * batch)),
        channels_first=data.draw(st.booleans()),
        poison=data.draw(st.sampled_from([math.nan, math.inf, -math.inf])),
    )
    check_case(case, data.draw(st.sampled_from(DTYPES)), "cpp")


def test_nan_that_counts_is_not_hidden():
    query, key, value = make_tensors(ReadCase(batch=1), torch.float32)[:3]
    key[0, 5, 0] = math.nan
    assert memory_read(query, key, value, backend="cpp").isnan().all()


def test_scores_of_ten_thousand():
    query, key, value = make_tensors(ReadCase(batch=1, spread=3000.0), torch.float32)[:3]
    out, lse = memory_read(query, key, value, return_lse=True, backend="cpp")
    assert lse.max() > 1e4
    assert out.isfinite().all()
    check_case(ReadCase(batch=1, spread=3000.0), torch.float32, "cpp")


def test_inference_mode():
    tensors = make_tensors(ReadCase(), torch.float32)[:3]
    with torch.inference_mode():
        inside = memory_read(*tensors, backend="cpp")
    assert torch.equal(inside, memory_read(*tensors, backend="cpp"))


def test_several_python_threads_at_once():
    tensors = make_tensors(ReadCase(queries=100, rows=300), torch.float32)[:3]
    expected = memory_read(*tensors, backend="cpp")
    barrier = threading.Barrier(4)

    def read(_: int) -> Tensor:
        barrier.wait()
        return memory_read(*tensors, backend="cpp")

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.allclose(out, expected, atol=1e-6) for out in pool.map(read, range(4)))


def _read_in_child(connection) -> None:
    torch.set_num_threads(1)  # as DataLoader workers do
    connection.send(float(memory_read(*make_tensors(ReadCase(), torch.float32)[:3], backend="cpp").sum()))


def test_after_fork():
    expected = float(memory_read(*make_tensors(ReadCase(), torch.float32)[:3], backend="cpp").sum())
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_read_in_child, args=(there,))
    child.start()
    assert here.poll(60), "the forked process hangs"
    assert here.recv() == pytest.approx(expected, rel=1e-5)
    child.join()
