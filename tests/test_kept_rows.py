"""Kept weights of a top-k read: memory_read(return_top_k=True) and read_rows(), with every backend."""

import pytest
import torch
from torch.library import opcheck

from stm_fast import memory_read, read_rows
from stm_fast.ops.reference import affinity_scores, largest_scores
from stm_fast.testing import ReadCase, make_tensors, options
from stm_fast.testing.cases import leaves, read_inputs

BACKENDS = ["reference", "cpp"]
ON_GPU = pytest.param(
    "triton", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")]
)
L2 = {"similarity": "l2", "shrinkage": True, "selection": True}
CASES = [
    ReadCase(top_k=7),
    ReadCase(top_k=1, queries=1),
    ReadCase(top_k=60),  # values are not gathered
    ReadCase(top_k=7, batch=3, shared_query=True, shared_key=True),
    ReadCase(top_k=7, lengths=(3, 97)),
    ReadCase(top_k=7, lengths=(0, 40), shared_key=True),
    ReadCase(top_k=30, channels_first=True, **L2),
    ReadCase(top_k=97),  # every row
    ReadCase(top_k=200, rows=5, lengths=(2, 5)),
    ReadCase(top_k=3, queries=0),
    ReadCase(top_k=3, rows=0),
    ReadCase(top_k=3, value_dim=0),
    ReadCase(top_k=3, spread=0.0),  # equal scores: the lower rows are kept
]


def read(case, tensors, backend, **chosen):
    extras = {
        "shrinkage": tensors.shrinkage,
        "selection": tensors.selection,
        **options(case, tensors.query.device.type),
    }
    return memory_read(*tensors[:3], **extras, return_top_k=True, backend=backend, **chosen)


def dense_affinity(case, tensors):
    """The affinity [B, M, N] in float64, with zeros outside of the top k."""
    tensors = leaves(tensors, torch.float64, False)
    inputs = read_inputs(case, tensors)
    score = affinity_scores(inputs, torch.float64)
    if case.top_k < case.rows:
        score = score.masked_fill(~largest_scores(score, case.top_k), -torch.inf)
    return score.softmax(-1).nan_to_num(nan=0)


def scattered(weights, rows, count):
    """[B, M, k] to [B, M, N]."""
    batch, queries, _ = rows.shape
    dense = weights.new_zeros(batch, queries, count + 1)
    return dense.scatter(-1, rows.where(rows >= 0, count), weights)[..., :count]


@pytest.mark.parametrize("backend", [*BACKENDS, ON_GPU])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_and_rows_are_the_entries_of_the_affinity(case, backend):
    device = "cuda" if backend == "triton" else "cpu"
    tensors = make_tensors(case, torch.float32 if device == "cuda" else torch.float64, device)
    out, lse, usage, weights, rows = read(case, tensors, backend, return_lse=True, return_usage=True)
    count = min(case.top_k, case.rows)
    assert weights.shape == rows.shape == (case.batch, case.queries, count)
    assert rows.dtype == torch.int64
    expected = dense_affinity(case, tensors)
    rtol, atol = (1e-9, 1e-12) if device == "cpu" else (1e-4, 1e-6)
    torch.testing.assert_close(scattered(weights, rows, case.rows).double(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(usage.double(), expected.sum(1), rtol=rtol, atol=atol)
    # ascending, -1 last
    order = rows.where(rows >= 0, case.rows)
    assert bool((order.diff(dim=-1) >= 0).all())
    assert bool((weights[rows < 0] == 0).all())
    lengths = torch.tensor(case.lengths or [case.rows] * case.batch)
    assert torch.equal((rows >= 0).sum(-1), lengths.clamp(max=count)[:, None].expand(-1, case.queries).to(rows.device))
    plain = memory_read(
        *tensors[:3],
        shrinkage=tensors.shrinkage,
        selection=tensors.selection,
        return_lse=True,
        backend=backend,
        **options(case, device),
    )
    torch.testing.assert_close((out, lse), plain, rtol=0, atol=0)


def example(dtype=torch.float64, batch=3, weights_batch=3, channels_first=False):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(weights_batch, 5, 4, generator=generator).to(dtype)
    rows = torch.randint(-1, 9, weights.shape, generator=generator)
    value = torch.randn(batch, 9, 6, generator=generator).to(dtype)
    return weights, rows, value.mT.contiguous().mT if channels_first else value


def by_products(weights, rows, value):
    """read_rows() by the affinity [B, M, N]."""
    dense = weights.new_zeros(*rows.shape[:2], value.shape[1] + 1)
    dense = dense.scatter_add(-1, rows.where(rows >= 0, value.shape[1]), weights)[..., :-1]
    return dense @ value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights_batch", [1, 3])
@pytest.mark.parametrize("channels_first", [False, True])
def test_read_rows_and_its_gradients(backend, weights_batch, channels_first):
    weights, rows, value = example(weights_batch=weights_batch, channels_first=channels_first)
    leaf_weights, leaf_value = weights.requires_grad_(), value.detach().requires_grad_()
    found = read_rows(leaf_weights, rows, leaf_value, backend=backend)
    expected = by_products(leaf_weights, rows, leaf_value)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, (leaf_weights, leaf_value), upstream)
    expected = torch.autograd.grad(expected, (leaf_weights, leaf_value), upstream)
    absent = rows < 0
    expected = expected[0].masked_fill(absent, 0), expected[1]
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("queries", "kept", "memory", "width"), [(0, 4, 9, 6), (5, 0, 9, 6), (5, 0, 0, 6), (5, 4, 9, 0)]
)
def test_read_rows_of_nothing(backend, queries, kept, memory, width):
    weights, value = torch.rand(2, queries, kept, requires_grad=True), torch.rand(2, memory, width, requires_grad=True)
    out = read_rows(weights, torch.zeros(2, queries, kept, dtype=torch.int64), value, backend=backend)
    assert out.shape == (2, queries, width)
    assert not out.any() or kept
    gradients = torch.autograd.grad(out.sum(), (weights, value))
    assert [gradient.shape for gradient in gradients] == [weights.shape, value.shape]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_read_rows_sums_in_float32(backend, dtype):
    weights, rows, value = example(torch.float32)
    found = read_rows(weights, rows, value.to(dtype), backend=backend)
    assert found.dtype == dtype
    exact = by_products(weights.double(), rows, value.to(dtype).double())
    torch.testing.assert_close(found.double(), exact, rtol=float(torch.finfo(dtype).eps), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options_", [{}, L2], ids=["dot", "l2"])
@pytest.mark.parametrize("top_k", [5, 97])
def test_several_values_read_with_one_affinity_equal_their_own_reads(backend, options_, top_k):
    case = ReadCase(batch=2, top_k=top_k, shared_key=True, shared_query=True, **options_)
    tensors = leaves(make_tensors(case, torch.float64), torch.float64, True)
    nothing = tensors._replace(value=tensors.key[..., :0])
    _, weights, rows = read(case, nothing, backend)
    found = read_rows(weights, rows, tensors.value, backend=backend)
    expected = read(case, tensors, backend)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    given = [tensor for tensor in tensors if tensor is not None]
    upstream = torch.randn_like(found)
    gradients, by_read = (torch.autograd.grad(out, given, upstream) for out in (found, expected))
    torch.testing.assert_close(gradients, by_read, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lengths", [None, (9, 97)])
def test_gradients_of_the_weights_of_several_objects_with_one_key(lengths):
    case = ReadCase(batch=2, top_k=5, shared_key=True, shared_query=True, lengths=lengths)
    tensors = leaves(make_tensors(case, torch.float64), torch.float64, True)
    results = []
    for backend in BACKENDS:
        _, weights, rows = read(case, tensors, backend)
        upstream = torch.arange(weights.numel()).view(weights.shape) / weights.numel()
        results.append((weights, rows, *torch.autograd.grad(weights, tensors[:2], upstream.double())))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_the_reference_reads_many_queries_in_chunks(monkeypatch):
    case = ReadCase(top_k=7)
    tensors = make_tensors(case, torch.float64)
    expected = read(case, tensors, "reference")
    monkeypatch.setattr("stm_fast.ops.reference.EAGER_AFFINITY_LIMIT", 1)
    monkeypatch.setattr("stm_fast.ops.kept_rows.MOST_GATHERED", 1)
    found = read(case, tensors, "reference")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(read_rows(*found[1:], tensors.value, backend="reference"), expected[0])


@pytest.mark.parametrize("operator", ["read_rows_cpp", "read_rows_cpp_backward"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck(operator):
    weights, rows, value = example(torch.float32)
    given = (weights, rows, value)
    if operator.endswith("backward"):
        given = (torch.randn(3, 5, 6), *given)
    else:
        given = (weights.requires_grad_(), rows, value.requires_grad_())
    opcheck(getattr(torch.ops.stm_fast, operator).default, given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_compile_whole(backend):
    case = ReadCase(top_k=4)
    tensors = make_tensors(case, torch.float32)

    def twice(query, key, value):
        out, weights, rows = memory_read(query, key, value, top_k=4, return_top_k=True, backend=backend)
        return out, read_rows(weights, rows, value, backend=backend)

    torch.compiler.reset()
    found = torch.compile(twice, fullgraph=True, backend="aot_eager")(*tensors[:3])
    torch.testing.assert_close(found, twice(*tensors[:3]))


def test_a_known_call_returns_the_same_again():
    case = ReadCase(top_k=4)
    tensors = make_tensors(case, torch.float32)
    first, second = (read(case, tensors, "cpp", return_usage=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


WEIGHTS, ROWS, VALUE = example()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((WEIGHTS[0], ROWS, VALUE), ValueError, r"weights, rows, value: found weights \(5, 4\)"),
        ((WEIGHTS, ROWS[..., :2], VALUE), ValueError, "expected \\[B, M, k\\] twice"),
        ((WEIGHTS[:2], ROWS[:2], VALUE), ValueError, "weights: batch is neither 1 nor value's"),
        ((WEIGHTS, ROWS.double(), VALUE), TypeError, "rows: found torch.float64, expected torch.int32 or torch.int64"),
        ((ROWS, ROWS, VALUE), TypeError, "weights: found torch.int64, expected one of torch.float16"),
        ((WEIGHTS, ROWS + 1, VALUE), ValueError, "rows: found values from 0 to 9, expected from -1 to 8"),
        ((WEIGHTS, ROWS - 1, VALUE), ValueError, "rows: found values from -2 to 7, expected from -1 to 8"),
        ((WEIGHTS, None, VALUE), TypeError, "rows: found NoneType, expected a tensor"),
    ],
)
def test_errors_of_read_rows(given, error, message):
    with pytest.raises(error, match=message):
        read_rows(*given)


def test_weights_do_not_depend_on_the_values():
    tensors = make_tensors(ReadCase(top_k=4), torch.float32)
    expected = read(ReadCase(top_k=4), tensors, "cpp")
    found = read(ReadCase(top_k=4), tensors._replace(value=tensors.value.requires_grad_()), "cpp")
    assert [tensor.requires_grad for tensor in found] == [True, False, False]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_second_derivatives_are_the_references():
    weights, rows, value = example()
    given = weights.requires_grad_(), value.requires_grad_()

    def second(backend):
        out = read_rows(given[0], rows, given[1], backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), given[:1], create_graph=True)
        return torch.autograd.grad(first.sum(), given)

    assert all(gradient.any() for gradient in second("reference"))
    with pytest.raises(NotImplementedError, match="memory read: found a second derivative, expected at most a first"):
        second("cpp")


def test_return_top_k_needs_a_top_k():
    tensors = make_tensors(ReadCase(), torch.float32)
    with pytest.raises(ValueError, match="return_top_k: found True without top_k, expected a top_k"):
        memory_read(*tensors[:3], return_top_k=True)


def test_rows_of_other_integers():
    weights, rows, value = example()
    torch.testing.assert_close(read_rows(weights, rows.int(), value), read_rows(weights, rows, value))
