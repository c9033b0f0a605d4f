"""Gradients of the memory read: against finite differences, of spare and shared memory, recomputed in chunks."""

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad

from stm_fast import memory_read
from stm_fast.ops import cpp_ops, reference
from stm_fast.testing import CASES, ReadCase, Tensors, make_tensors
from stm_fast.testing.cases import read_inputs
from stm_fast.testing.runs import leaves, random_upstream, read_outputs, with_gradients

needs_cpp = pytest.mark.skipif(bool(cpp_ops.absent_reasons()), reason="; ".join(cpp_ops.absent_reasons()))
BACKENDS = ["reference", "auto"]  # auto is the fastest engine that is built and supports the read
SMALL = ReadCase(batch=2, queries=3, rows=5, key_dim=2, value_dim=3)
L2 = replace(SMALL, similarity="l2", shrinkage=True, selection=True)
GRADCHECK_CASES = [
    SMALL,
    replace(SMALL, top_k=2),
    replace(SMALL, lengths=(0, 4)),
    replace(SMALL, shared_query=True),
    replace(SMALL, shared_key=True),
    replace(SMALL, queries=1, rows=1),
    L2,
    replace(L2, query_norm=False),
    replace(L2, selection=False),
    replace(L2, shrinkage=False),
    replace(L2, top_k=2),
    replace(L2, lengths=(5, 2), shared_shrinkage=True),
    replace(L2, shared_query=True, shared_key=True),
    replace(L2, shared_key=True, shared_shrinkage=False, top_k=3),
]


@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_match_finite_differences(backend, case):
    # finite differences of NaN are NaN
    unpoisoned = (
        None if tensor is None else tensor.nan_to_num(nan=3.0) for tensor in make_tensors(case, torch.float64)
    )
    tensors = leaves(Tensors(*unpoisoned), torch.float64, True)
    given = [tensor for tensor in tensors if tensor is not None]

    def read(*changed):
        remaining = iter(changed)
        current = Tensors(*(None if tensor is None else next(remaining) for tensor in tensors))
        outputs = read_outputs(case, current, backend)
        return outputs["out"], outputs["lse"].masked_fill(outputs["lse"] == -math.inf, 0)

    assert torch.autograd.gradcheck(read, given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_object_of_an_expanded_batch_has_its_own_gradient(backend):
    tensors = make_tensors(replace(L2, shared_query=True, shared_key=True, shared_shrinkage=True), torch.float64)
    query, key, value, shrinkage, selection = tensors
    results = []
    for lay_out in (torch.Tensor.detach, torch.Tensor.contiguous):
        given = [lay_out(t.expand(2, *t.shape[1:])).requires_grad_() for t in (query, key, shrinkage, selection)]
        options = {"similarity": "l2", "shrinkage": given[2], "selection": given[3], "backend": backend}
        out = memory_read(*given[:2], value, **options)
        results.append(torch.autograd.grad(out.square().sum(), given))
    torch.testing.assert_close(*results)


# a warning of PyTorch at its first forward-mode derivative
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("backend", [pytest.param("cpp", marks=needs_cpp), "auto"])
def test_tangents_are_never_dropped(backend):
    query, key, value, tangent = (torch.randn(1, 3, 4) for _ in range(4))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, tangent)
        if backend == "cpp":
            with pytest.raises(NotImplementedError, match="forward-mode"):
                memory_read(dual, key, value, backend=backend)
            return
        found = forward_ad.unpack_dual(memory_read(dual, key, value, backend=backend)).tangent
    expected = torch.func.jvp(lambda given: memory_read(given, key, value, backend="reference"), (query,), (tangent,))
    torch.testing.assert_close(found, expected[1])


@pytest.mark.parametrize("case", [case for case in CASES if case.queries], ids=str)
def test_the_chunked_reference_equals_the_eager_one(case):
    tensors = leaves(make_tensors(case, torch.float64), torch.float64, True)
    inputs = read_inputs(case, tensors)
    results = []
    for result in (reference.read_chunked(inputs, 7), reference.read_eager(inputs)):
        outputs = {name: tensor for name, tensor in result._asdict().items() if tensor is not None}
        results.append(with_gradients(outputs, tensors, random_upstream(outputs)))
    torch.testing.assert_close(*results)


def test_the_reference_reads_in_chunks_if_the_affinity_is_large(monkeypatch):
    tensors = make_tensors(ReadCase(), torch.float64)
    whole = read_outputs(ReadCase(), tensors, "reference")
    shapes, read_eager = [], reference.read_eager
    monkeypatch.setattr(reference, "EAGER_AFFINITY_LIMIT", 2 * 97 * 10)
    monkeypatch.setattr(reference, "read_eager", lambda part: shapes.append(part.query.shape[1]) or read_eager(part))
    torch.testing.assert_close(read_outputs(ReadCase(), tensors, "reference"), whole)
    assert shapes == [10, 10, 10, 3]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("chosen", [{}, {"similarity": "l2", "shrinkage": True, "selection": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_spare_rows_and_empty_memories_neither_get_nor_give_a_gradient(backend, chosen, poison):
    case = ReadCase(lengths=(0, 40), poison=poison, **chosen)
    tensors = leaves(make_tensors(case, torch.float32), torch.float32, True)
    outputs = read_outputs(case, tensors, backend)
    results = with_gradients(outputs, tensors, random_upstream(outputs))
    assert all(results[name].isfinite().all() for name in results if name.startswith("grad_"))
    for name in ("grad_query", "grad_selection"):
        if name in results:
            assert not results[name][0].any()
            assert results[name][1].any()
    for name in ("grad_key", "grad_value", "grad_shrinkage"):
        if name in results:
            assert not results[name][0].any()
            assert not results[name][1, 40:].any()
            assert results[name][1, :40].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_outside_the_top_k_get_no_gradient(backend):
    case = ReadCase(batch=1, queries=2, top_k=3)
    tensors = leaves(make_tensors(case, torch.float32), torch.float32, True)
    outputs = read_outputs(case, tensors, backend)
    results = with_gradients(outputs, tensors, random_upstream(outputs))
    kept = (tensors.query @ tensors.key.mT)[0].topk(3).indices.unique()
    for name in ("grad_key", "grad_value"):
        assert results[name][0].any(-1).nonzero().flatten().tolist() == kept.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", ["query", "key", "value", "shrinkage", "selection"])
def test_a_single_input_may_require_a_gradient(backend, wanted):
    case = ReadCase(similarity="l2", shrinkage=True, selection=True)
    tensors = make_tensors(case, torch.float64)
    complete = leaves(tensors, torch.float64, True)
    out = read_outputs(case, complete, "reference")["out"]
    expected = torch.autograd.grad(out.square().sum(), getattr(complete, wanted))
    leaf = getattr(tensors, wanted).requires_grad_()
    out = read_outputs(case, tensors, backend)["out"]
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), leaf), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("used", ["out", "lse"])
def test_a_single_output_may_be_used(backend, used):
    gradients = []
    for name in (backend, "reference"):
        tensors = leaves(make_tensors(ReadCase(), torch.float64), torch.float64, True)
        output = read_outputs(ReadCase(), tensors, name)[used]
        gradients.append(torch.autograd.grad(output.square().sum(), tensors[:3], materialize_grads=True))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shared_batch_gets_the_sum_of_the_gradients(backend):
    query, key, value = (torch.randn(b, n, 4, dtype=torch.float64) for b, n in ((1, 3), (1, 5), (3, 5)))
    query.requires_grad_(), key.requires_grad_()
    upstream = torch.randn(3, 3, 4, dtype=torch.float64)
    found = torch.autograd.grad(memory_read(query, key, value, backend=backend), (query, key), upstream)
    expanded = query.expand(3, -1, -1), key.expand(3, -1, -1)
    expected = torch.autograd.grad(memory_read(*expanded, value, backend=backend), (query, key), upstream)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bit_equal(backend, dtype):
    case = ReadCase(batch=3, queries=70, rows=300, shared_query=True, shared_key=True, similarity="l2", shrinkage=True)
    runs = []
    for _ in range(2):
        tensors = leaves(make_tensors(case, dtype), dtype, True)
        outputs = read_outputs(replace(case, return_usage=True), tensors, backend)
        runs.append(with_gradients(outputs, tensors, random_upstream(outputs)))
    assert runs[0].keys() == runs[1].keys()
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_usage_is_not_differentiable(backend):
    tensors = leaves(make_tensors(ReadCase(), torch.float32), torch.float32, True)
    outputs = read_outputs(ReadCase(return_usage=True), tensors, backend)
    assert outputs["out"].requires_grad
    assert outputs["lse"].requires_grad
    assert not outputs["usage"].requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_graph_is_built_if_gradients_are_off(backend):
    tensors = leaves(make_tensors(ReadCase(), torch.float32), torch.float32, True)
    with torch.no_grad():
        assert not memory_read(*tensors[:3], backend=backend).requires_grad
    with torch.inference_mode():
        inferred = memory_read(*tensors[:3], backend=backend)
    assert inferred.is_inference()
    torch.testing.assert_close(inferred.clone(), memory_read(*tensors[:3], backend=backend).detach())
