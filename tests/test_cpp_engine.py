"""The C++ engine beyond the common cases: gradcheck, threads, strides, spare rows, every block boundary."""

import itertools
import math
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stm_fast.benchmarking.measuring import CLEAR, peak_memory
from stm_fast.choices import SIMILARITIES
from stm_fast.ops import cpp_ops, memory_read
from stm_fast.testing import ReadCase, Tensors, check_case, make_tensors, options

pytestmark = [
    pytest.mark.skipif(bool(cpp_ops.absent_reasons()), reason="; ".join(cpp_ops.absent_reasons())),
    pytest.mark.usefixtures("poisoned_memory"),
]

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
# enough work for five threads: smaller reads use fewer
WIDE = ReadCase(batch=3, queries=50, rows=500, key_dim=64, value_dim=64)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def run(case: ReadCase, tensors: Tensors, backend: str = "cpp") -> tuple[Tensor, ...]:
    """out, lse and usage."""
    extras = {"shrinkage": tensors.shrinkage, "selection": tensors.selection, **options(case)}
    return memory_read(*tensors[:3], **extras, return_lse=True, return_usage=True, backend=backend)


def read_and_gradients(case: ReadCase, dtype: torch.dtype = torch.float32, backend: str = "cpp") -> list[Tensor]:
    tensors = Tensors(*(None if t is None else t.requires_grad_() for t in make_tensors(case, dtype)))
    out, lse, usage = run(case, tensors, backend)
    inputs = [t for t in tensors if t is not None]
    gradients = torch.autograd.grad([out, lse], inputs, [torch.ones_like(out), torch.ones_like(lse)])
    return [out, lse, usage, *gradients]


# around panels of 24 queries and the smallest blocks, of 192 queries or rows; up to 256 queries there are no panels
@pytest.mark.parametrize("queries", [23, 25, 192, 257, 263, 264, 265, 384, 385])
@pytest.mark.parametrize("rows", [191, 192, 193, 577])
def test_block_boundaries(queries, rows):
    check_case(ReadCase(batch=1, queries=queries, rows=rows, key_dim=9, value_dim=5), torch.float32, "cpp")


# blocks of at most 816 queries, one per thread: a single one, several, and more than threads; cut at odd rows
@pytest.mark.parametrize("queries", [385, 817, 1650])
def test_blocks_of_threads(queries, threads):
    check_case(ReadCase(batch=1, queries=queries, rows=577, key_dim=9, value_dim=5), torch.float32, "cpp")


# values of 64 channels are read in place, those of 37 are packed; one or two threads divide the memory, five divide the
# queries
@pytest.mark.slow
@pytest.mark.parametrize("value_dim", [64, 37])
@pytest.mark.parametrize("queries", [1, 3, 16, 17, 48, 63, 64, 65])
def test_few_queries(queries, value_dim, threads):
    check_case(ReadCase(batch=1, queries=queries, rows=3101, key_dim=32, value_dim=value_dim), torch.float32, "cpp")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_read_in_place_bit_for_bit(dtype):
    query, key, value = make_tensors(ReadCase(batch=1, queries=21, rows=420, key_dim=16, value_dim=64), dtype)[:3]
    assert value.stride(2) == 1
    expected = memory_read(query, key, value, backend="cpp")
    gaps = torch.full((1, 420, 128), math.nan, dtype=dtype)[..., :64].copy_(value)
    by_channel = with_strides(value, (0, 2, 1))
    for moved in (gaps, by_channel):
        assert torch.equal(memory_read(query, key, moved, backend="cpp"), expected)


def test_few_queries_are_read_in_a_separate_pass():
    # within a pass, the read of a query does not depend on the others; the passes sum in different orders, that of up
    # to 2 queries (4 with AVX-512) in 16 streams
    query, key, value = make_tensors(
        ReadCase(batch=1, queries=300, rows=2000, key_dim=32, value_dim=64), torch.float32
    )[:3]
    counts = (1, 2, 5, 16, 65, 256, 257, 300)
    read = {count: memory_read(query[:, :count], key, value, backend="cpp") for count in counts}
    for few, more in ((1, 2), (5, 256), (16, 256), (65, 256), (257, 300)):
        assert torch.equal(read[few], read[more][:, :few])
    for few, more in ((2, 5), (256, 257)):
        assert not torch.equal(read[few], read[more][:, :few])
        torch.testing.assert_close(read[few], read[more][:, :few], rtol=1e-4, atol=1e-6)


# 1 to 4 queries: memories that are divided into 16 streams of an odd number of rows, with rows left over or too few for
# any; widths of whole vectors of some instruction sets or of none
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("rows", "key_dim"), [(1, 64), (15, 64), (16, 48), (47, 64), (613, 128), (3103, 9)])
def test_streams(queries, rows, key_dim, dtype):
    shape = ReadCase(batch=1, queries=queries, rows=rows, key_dim=key_dim, value_dim=64)
    check_case(shape, dtype, "cpp")
    objects = replace(shape, batch=2, lengths=(rows, rows // 2))
    check_case(objects, dtype, "cpp")
    check_case(replace(objects, shared_query=True, shared_key=True, lengths=None), dtype, "cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [1, 4])
def test_streams_read_rows_with_gaps_and_never_beyond_the_lengths(queries, dtype):
    case = ReadCase(batch=1, queries=queries, rows=700, key_dim=64, value_dim=64)
    query, key, value = make_tensors(case, dtype)[:3]
    lengths = torch.tensor([389], dtype=torch.int32)
    expected = memory_read(query, key[:, :389], value[:, :389], backend="cpp")
    gaps = [torch.full((1, 700, 128), math.nan, dtype=dtype) for _ in range(2)]
    gaps[0][:, :389, :64], gaps[1][:, :389, :64] = key[:, :389], value[:, :389]
    found = memory_read(query, gaps[0][..., :64], gaps[1][..., :64], lengths=lengths, backend="cpp")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        replace(WIDE, batch=1, queries=9, rows=4000),
        replace(WIDE, batch=1, queries=260, rows=500),
        replace(WIDE, lengths=(500, 0, 193)),
        replace(WIDE, lengths=(500, 0, 193), queries=260),
        replace(WIDE, shared_key=True, shared_query=True, lengths=(500, 0, 193)),
        replace(WIDE, shared_key=True, lengths=(1, 300, 193)),
        replace(WIDE, batch=1, queries=9, rows=4000, top_k=40, return_usage=True),
        replace(WIDE, similarity="l2", shrinkage=True, selection=True, shared_key=True, top_k=200),
    ],
    ids=str,
)
def test_any_number_of_threads(case, dtype, threads):
    check_case(case, dtype, "cpp")


@pytest.mark.parametrize(
    "case",
    [
        ReadCase(queries=200, rows=700),
        ReadCase(shared_key=True, queries=9, rows=700),
        ReadCase(
            queries=50, rows=700, similarity="l2", shrinkage=True, selection=True, shared_shrinkage=True, top_k=20
        ),
    ],
    ids=str,
)
def test_two_runs_are_bit_equal(case, threads):
    for first, second in zip(read_and_gradients(case), read_and_gradients(case), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [30, 260])
def test_strides_do_not_change_a_bit(dtype, queries):
    case = ReadCase(batch=1, queries=queries, rows=140, key_dim=11, value_dim=13)
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


SMALL = ReadCase(queries=4, rows=6, key_dim=3, value_dim=2, lengths=(6, 4))
L2 = replace(SMALL, similarity="l2")


@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        replace(SMALL, shared_query=True),
        replace(SMALL, shared_key=True),
        replace(SMALL, top_k=2),
        L2,
        replace(L2, selection=True),
        replace(L2, shrinkage=True, query_norm=False),
        replace(L2, shrinkage=True, selection=True),
        replace(L2, shrinkage=True, selection=True, query_norm=False),
        replace(L2, shrinkage=True, selection=True, shared_query=True, shared_shrinkage=True),
        replace(L2, shrinkage=True, selection=True, shared_key=True, shared_shrinkage=False),
        replace(L2, shrinkage=True, selection=True, shared_key=True, top_k=3),
    ],
    ids=str,
)
def test_gradcheck(case):
    tensors = [None if t is None else t.requires_grad_() for t in make_tensors(case, torch.float64)]
    given = [t for t in tensors if t is not None]

    def read(*inputs: Tensor) -> tuple[Tensor, ...]:
        left = iter(inputs)
        return run(case, Tensors(*(None if t is None else next(left) for t in tensors)))[:2]

    assert torch.autograd.gradcheck(read, given)


@pytest.mark.parametrize("top_k", [1, 5, 129, 200])
def test_ties_go_to_the_lower_index(top_k):
    # every row occurs at least twice; its value is its index, so that taking the wrong one of two equal rows shows
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(-1, 2, (1, 300, 3), generator=generator).float()
    value = torch.arange(300.0)[None, :, None]
    query = torch.randint(-1, 2, (1, 40, 3), generator=generator).float()
    expected = memory_read(query, key, value, top_k=top_k, return_usage=True, backend="reference")
    found = memory_read(query, key, value, top_k=top_k, return_usage=True, backend="cpp")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_fuzz(data, dtype):
    """Any shape, with a tolerance for rounding, unlike the common cases: this test looks for wrong indices."""
    batch, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 300))
    similarity = data.draw(st.sampled_from(SIMILARITIES))
    l2 = similarity == "l2"
    case = ReadCase(
        similarity=similarity,
        shrinkage=l2 and data.draw(st.booleans()),
        selection=l2 and data.draw(st.booleans()),
        query_norm=data.draw(st.booleans()),
        shared_shrinkage=data.draw(st.booleans()),
        top_k=data.draw(st.none() | st.integers(1, 310)),
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
    found, expected = (read_and_gradients(case, dtype, backend) for backend in ("cpp", "reference"))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1000 * torch.finfo(dtype).eps, atol=1000 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("contiguous", [True, False])
def test_every_number_of_16_bits_is_read_and_written(dtype, contiguous):
    """A memory of one row is read unchanged: all 65,536 values pass through, widened and rounded again."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 1, -1)
    value = numbers if contiguous else numbers.repeat_interleave(2, dim=2)[..., ::2]
    key = torch.ones(1, 1, 4, dtype=dtype)
    found = memory_read(key, key, value, backend="cpp")
    if dtype == torch.bfloat16:  # vdpbf16ps treats denormal numbers as 0
        denormal = numbers.abs() < torch.finfo(dtype).tiny
        found, numbers = found.masked_fill(denormal, 0), numbers.masked_fill(denormal, 0)
    assert torch.equal(found.isnan(), numbers.isnan())
    assert torch.equal(found.nan_to_num(nan=1.5), numbers.nan_to_num(nan=1.5))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_to_16_bits_is_to_nearest_even(dtype):
    # two rows of equal weight: the mean of neighboring numbers is a tie, above an odd or an even one
    numbers = torch.arange(2**15 - 1).to(torch.int16).view(dtype)
    numbers = numbers[numbers < 1e38]  # two are added before the division
    numbers = numbers[numbers.isfinite()]
    value = torch.stack([numbers[:-1], numbers[1:]])[None]  # [1, 2, numbers]
    key = torch.ones(1, 2, 4, dtype=dtype)
    found = memory_read(key[:, :1], key, value, backend="cpp")[0, 0]
    expected = value[0].double().mean(0).to(dtype)
    # vdpbf16ps treats denormal rows as 0; those of float16 are normal in float32
    checked = (value[0].abs() >= (torch.finfo(dtype).tiny if dtype == torch.bfloat16 else 0)).all(0)
    assert checked.sum() > 20_000
    assert torch.equal(found[checked], expected[checked])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(64, 80), (9, 48), (64, 21)])
def test_gradients_do_not_depend_on_whether_rows_are_read_in_place(key_dim, value_dim, similarity, dtype):
    # rows of whole vectors in some instruction sets or in none; vectors without channels are left out
    case = ReadCase(
        batch=2, queries=50, rows=230, key_dim=key_dim, value_dim=value_dim, similarity=similarity, shared_query=True
    )
    tensors = make_tensors(case, dtype)[:3]
    upstream = torch.randn(2, 50, value_dim, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(memory_read(*leaves, similarity=similarity, backend="cpp"), leaves, gradient)

    expected = gradients(upstream, *tensors)
    for order in ((0, 1, 2), (0, 2, 1)):
        moved = [with_strides(t, order) for t in (upstream, *tensors)]
        for ours, theirs in zip(gradients(*moved), expected, strict=True):
            assert torch.equal(ours, theirs)
    check_case(case, dtype, "cpp")


def test_sums_beyond_the_largest_float16_become_infinite():
    # every query reads this row alone, so its gradient is the sum of theirs
    query, key = (torch.ones(1, rows, 4, dtype=torch.float16) for rows in (4, 1))
    value = torch.ones(1, 1, 5, dtype=torch.float16, requires_grad=True)
    upstream = torch.tensor([16000.0, 16379.0, 16380.0, -16380.0, -20000.0], dtype=torch.float16)
    memory_read(query, key, value, backend="cpp").backward(upstream.expand(1, 4, 5))
    assert torch.equal(value.grad[0, 0], (4 * upstream.double()).to(torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [50, 260])
def test_values_near_the_largest_number_are_read(queries, dtype):
    # sums before the division are up to 300 times as large; between two huge channels, one is tiny
    query, key, value = make_tensors(ReadCase(batch=1, queries=queries, rows=300), dtype)[:3]
    plain = memory_read(query, key, value, backend="cpp")
    value[..., 7] = value[..., 7].sign() * 3e38
    value[..., 9] = -3.3e38
    value[..., 8] *= 1e-30
    found, expected = (
        memory_read(*(t.to(kind) for t in (query, key, value)), backend="cpp").double()
        for kind in (dtype, torch.float64)
    )
    assert found.isfinite().all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found[..., 7:10:2], expected[..., 7:10:2], rtol=0, atol=10 * eps * 3e38)
    torch.testing.assert_close(found[..., 8], expected[..., 8], rtol=0, atol=10 * eps * 1e-30)
    assert torch.equal(found[..., 10:], plain[..., 10:].double())


@pytest.mark.parametrize("large", [math.inf, -math.inf, math.nan])
def test_nan_and_infinity_stay_in_their_channel(large):
    query, key, value = make_tensors(ReadCase(batch=1), torch.float32)[:3]
    plain = memory_read(query, key, value, backend="cpp")
    value[0, 5, 3] = large
    found = memory_read(query, key, value, backend="cpp")
    assert torch.equal(found[..., 3].nan_to_num(nan=1.5), torch.full((1, 33), large).nan_to_num(nan=1.5))
    found[..., 3] = plain[..., 3]
    assert torch.equal(found, plain)


# of 400 rows, 50 are few enough to be read one by one, 51 are not
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("top_k", [1, 20, 50, 51])
def test_top_k(top_k, channels_first):
    case = ReadCase(batch=1, queries=30, rows=400, value_dim=6, channels_first=channels_first)
    check_case(replace(case, top_k=top_k), torch.float32, "cpp")


# up to three objects share one affinity at a time; objects with separate rows share none
@pytest.mark.parametrize("objects", [2, 3, 5])
@pytest.mark.parametrize(
    "case",
    [
        ReadCase(),
        ReadCase(lengths=(250,)),
        ReadCase(top_k=5),
        ReadCase(similarity="l2", shrinkage=True, selection=True),
        ReadCase(similarity="l2", shrinkage=True, shared_shrinkage=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("queries", [70, 260])
def test_a_shared_affinity_reads_as_objects_one_by_one(objects, case, queries, threads):
    lengths = None if case.lengths is None else case.lengths * objects
    shape = replace(case, batch=objects, queries=queries, rows=300, key_dim=32, shared_query=True, shared_key=True)
    case = replace(shape, lengths=lengths)
    tensors = make_tensors(case, torch.float32)
    together = run(case, tensors)
    for i in range(objects):
        of_object = Tensors(*(None if t is None else t[i % len(t)][None] for t in tensors))
        alone = run(replace(case, batch=1, lengths=None if lengths is None else lengths[:1]), of_object)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[i], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not CLEAR.exists(), reason="the system does not report the peak of resident memory")
def test_the_scratch_of_the_backward_is_under_8_megabytes_at_480p(threads):
    if threads > 2:
        pytest.skip("each thread has its own scratch")
    shapes = ((1620, 128), (1000, 128), (1000, 512))
    query, key, value = (torch.randn(1, *shape, requires_grad=True) for shape in shapes)
    out = memory_read(query, key, value, backend="cpp")
    upstream = torch.ones(1620, 512)[None]
    with peak_memory("cpu") as peak:
        gradients = torch.autograd.grad(out, (query, key, value), upstream)
    assert 1e6 < peak.bytes - sum(gradient.nbytes for gradient in gradients) < 8e6


def test_nan_in_a_row_within_the_memory_shows_in_a_top_k_read():
    query, key, value = make_tensors(ReadCase(batch=1), torch.float32)[:3]
    key[0, 90, 0] = math.nan
    assert memory_read(query, key, value, top_k=5, backend="cpp").isnan().all()


def test_nan_in_a_row_within_the_memory_shows():
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
