"""The memory read within PyTorch: opcheck, compile, export, autocast, torch.func, second derivatives."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from stm_fast import memory_read
from stm_fast.ops import reference
from stm_fast.ops.backends import BACKENDS
from stm_fast.testing import ReadCase, make_tensors, options
from stm_fast.testing.cases import read_inputs
from stm_fast.testing.runs import leaves, random_upstream, read_outputs, with_gradients

ENGINES = [("cpp", "cpu")]
if torch.cuda.is_available():
    ENGINES.append(pytest.param("triton", "cuda", marks=pytest.mark.gpu))
NAMES = ["auto", "reference"]
SMALL = ReadCase(queries=9, rows=13, key_dim=4, value_dim=6)
L2 = replace(SMALL, similarity="l2", shrinkage=True, selection=True)
VARIANTS = [
    SMALL,
    replace(SMALL, lengths=(13, 4), channels_first=True, return_usage=True),
    replace(SMALL, top_k=3, shared_key=True, shared_query=True),
    replace(L2, selection=False, query_norm=False),
    replace(L2, top_k=3, return_usage=True, lengths=(0, 13)),
]


def operator_arguments(case, device, requires_grad):
    # NaN differs from itself, so opcheck would take a poisoned sample for one that was written to
    tensors = make_tensors(replace(case, poison=3.0), torch.float32, device)
    tensors = leaves(tensors, torch.float32, requires_grad)
    inputs = read_inputs(case, tensors)
    return inputs.tensors, inputs.options


def skip_if_absent(engine):
    reasons = next(backend for backend in BACKENDS if backend.name == engine).absent_reasons()
    if reasons:
        pytest.skip("; ".join(reasons))


# opcheck looks at the .grad of its own copies
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", VARIANTS, ids=str)
@pytest.mark.parametrize(("engine", "device"), ENGINES)
def test_opcheck_of_the_forward_operators(engine, device, case, requires_grad):
    skip_if_absent(engine)
    tensors, chosen = operator_arguments(case, device, requires_grad)
    operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}").default
    opcheck(operator, (*tensors, *chosen))


@pytest.mark.parametrize("case", VARIANTS, ids=str)
@pytest.mark.parametrize(("engine", "device"), ENGINES)
def test_opcheck_of_the_backward_operators(engine, device, case):
    skip_if_absent(engine)
    tensors, chosen = operator_arguments(case, device, False)
    out, lse, *_ = getattr(torch.ops.stm_fast, f"memory_read_{engine}")(*tensors, *chosen)
    operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}_backward").default
    opcheck(operator, (torch.randn_like(out), torch.randn_like(lse), out, lse, *tensors, *chosen[:-2]))


@pytest.mark.parametrize("engine", ["cpp", "triton"])
def test_the_operators_are_defined_whether_or_not_their_engine_is_available(engine):
    schema = getattr(torch.ops.stm_fast, f"memory_read_{engine}").default._schema
    names = [argument.name for argument in schema.arguments]
    assert names[:6] == ["query", "key", "value", "shrinkage", "selection", "lengths"]
    assert [result.name for result in schema.returns] == ["out", "lse", "usage", "weights", "rows"]


def compiled_results(case, backend, compiler):
    tensors = leaves(make_tensors(case, torch.float32), torch.float32, True)
    chosen = options(case)
    lengths = chosen.pop("lengths")

    def read(tensors, lengths):
        results = memory_read(
            *tensors[:3],
            shrinkage=tensors.shrinkage,
            selection=tensors.selection,
            lengths=lengths,
            return_lse=True,
            return_usage=case.return_usage,
            backend=backend,
            **chosen,
        )
        return dict(zip(("out", "lse", "usage"), results, strict=False))

    # counts the compiled graphs: a second shape must not add one
    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(read, fullgraph=True, dynamic=True, backend=counting(compiler, graphs))
    outputs = compiled(tensors, lengths)
    found = with_gradients(outputs, tensors, random_upstream(outputs))
    plain = leaves(tensors, torch.float32, True)
    outputs = read_outputs(case, plain, backend)
    return found, with_gradients(outputs, plain, random_upstream(outputs)), compiled, graphs


def counting(compiler, graphs):
    lookup = torch._dynamo.lookup_backend(compiler)

    def compile_graph(graph, example_inputs):
        graphs.append(graph)
        return lookup(graph, example_inputs)

    return compile_graph


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        ("auto", SMALL),
        ("cpp", replace(SMALL, top_k=3, return_usage=True)),
        ("cpp", replace(L2, lengths=(5, 13))),
        pytest.param("reference", SMALL, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiles_whole_with_dynamic_shapes(backend, case):
    if backend == "cpp":
        skip_if_absent(backend)
    found, expected, compiled, graphs = compiled_results(case, backend, "aot_eager")
    torch.testing.assert_close(found, expected)
    longer = replace(case, rows=29, lengths=None if case.lengths is None else (29, 2))
    tensors = make_tensors(longer, torch.float32)
    with torch.no_grad():
        compiled(leaves(tensors, torch.float32, True), options(longer)["lengths"])
    before = len(graphs)
    longer = replace(longer, rows=31, queries=11)
    tensors = leaves(make_tensors(longer, torch.float32), torch.float32, True)
    with torch.no_grad():
        outputs = compiled(tensors, options(longer)["lengths"])
    torch.testing.assert_close(outputs, read_outputs(longer, leaves(tensors, torch.float32, False), backend))
    assert len(graphs) == before


@pytest.mark.slow
def test_compiles_with_inductor():
    found, expected, *_ = compiled_results(replace(L2, lengths=(5, 13)), "auto", "inductor")
    torch.testing.assert_close(found, expected)


class Reader(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, query, key, value, lengths):
        return memory_read(query, key, value, lengths=lengths, return_lse=True, backend=self.backend)


@pytest.mark.parametrize("backend", NAMES)
def test_exports_with_a_dynamic_memory_length(backend):
    def arguments(rows):
        lengths = torch.tensor([rows, 2], dtype=torch.int32)
        return torch.randn(2, 5, 4), torch.randn(2, rows, 4), torch.randn(2, rows, 3), lengths

    rows = torch.export.Dim("rows", min=2, max=100_000)
    dynamic_shapes = {"query": None, "key": {1: rows}, "value": {1: rows}, "lengths": None}
    program = torch.export.export(Reader(backend), arguments(7), dynamic_shapes=dynamic_shapes)
    longer = arguments(31)
    torch.testing.assert_close(program.module()(*longer), Reader(backend)(*longer))


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("chosen", [{}, {"similarity": "l2", "shrinkage": True, "selection": True}], ids=str)
def test_autocast_reads_in_the_lower_precision_and_accumulates_in_float32(backend, chosen):
    case = ReadCase(return_usage=True, **chosen)
    tensors = make_tensors(case, torch.float32)
    lowered = tensors._replace(**{name: getattr(tensors, name).bfloat16() for name in ("query", "key", "value")})
    expected = read_outputs(case, lowered, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = read_outputs(case, tensors, backend)
    assert found["out"].dtype == torch.bfloat16
    assert found["lse"].dtype == found["usage"].dtype == torch.float32
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("backend", NAMES)
def test_autocast_leaves_float64_and_gradients_in_their_dtype(backend):
    tensors = leaves(make_tensors(SMALL, torch.float64), torch.float64, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert memory_read(*tensors[:3], backend=backend).dtype == torch.float64
    tensors = leaves(tensors, torch.float32, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = memory_read(*tensors[:3], backend=backend)
    assert [gradient.dtype for gradient in torch.autograd.grad(out.sum(), tensors[:3])] == [torch.float32] * 3


def test_vmap_uses_the_reference():
    tensors = [torch.randn(4, 2, rows, 3) for rows in (5, 7, 7)]
    mapped = torch.vmap(memory_read)(*tensors)
    one_by_one = torch.stack([memory_read(*sample) for sample in zip(*tensors, strict=True)])
    torch.testing.assert_close(mapped, one_by_one)


def test_functional_gradients_use_the_reference():
    query, key, value = (torch.randn(2, rows, 3) for rows in (5, 7, 7))
    found = torch.func.grad(lambda query: memory_read(query, key, value).square().sum())(query)
    leaf = query.requires_grad_()
    expected = torch.autograd.grad(memory_read(leaf, key, value).square().sum(), leaf)[0]
    torch.testing.assert_close(found, expected)


def test_func_grad_of_a_read_in_chunks(monkeypatch):
    query, key, value = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(3))
    gradient = torch.func.grad(lambda query: memory_read(query, key, value).square().sum())
    expected = gradient(query)
    monkeypatch.setattr(reference, "EAGER_AFFINITY_LIMIT", 1)
    torch.testing.assert_close(gradient(query), expected)


def test_lengths_may_be_mapped_or_fake():
    query, key, value, lengths = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.tensor([1, 3])
    found = torch.vmap(lambda lengths: memory_read(query, key, value, lengths=lengths))(lengths.expand(2, 2))
    torch.testing.assert_close(found[1], memory_read(query, key, value, lengths=lengths))
    with FakeTensorMode() as mode:
        *tensors, lengths = map(mode.from_tensor, (query, key, value, lengths))
        out = memory_read(*tensors, lengths=lengths)
        assert out.shape == (2, 3, 4)


@pytest.mark.parametrize("transform", [torch.vmap, lambda read: torch.func.grad(lambda *tensors: read(*tensors).sum())])
def test_a_named_engine_says_that_it_cannot_be_transformed(transform):
    skip_if_absent("cpp")
    tensors = [torch.randn(2, 2, rows, 3) for rows in (5, 7, 7)]
    message = r"backend 'cpp' cannot run this memory read: it does not run under torch\.func transforms"
    with pytest.raises(NotImplementedError, match=message):
        transform(lambda *sample: memory_read(*(t.reshape(-1, *t.shape[-2:]) for t in sample), backend="cpp"))(*tensors)


def test_the_reference_has_second_derivatives():
    tensors = leaves(make_tensors(replace(SMALL, rows=3, queries=2), torch.float64), torch.float64, True)
    assert torch.autograd.gradgradcheck(lambda *given: memory_read(*given, backend="reference"), tensors[:3])


def test_an_engine_says_that_it_has_no_second_derivative():
    skip_if_absent("cpp")
    tensors = leaves(make_tensors(SMALL, torch.float32), torch.float32, True)
    out = memory_read(*tensors[:3], backend="cpp")
    gradient = torch.autograd.grad(out.square().sum(), tensors.query, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match='found a second derivative, expected at most a first; backend="ref'):
        gradient.sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_can_be_captured_in_a_cuda_graph():
    case = replace(ReadCase(), lengths=(97, 40), poison=0.0)
    tensors, chosen = make_tensors(case, torch.float16, "cuda"), options(case, "cuda")

    def read():
        return memory_read(*tensors[:3], backend="triton", **chosen)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels before the capture
        read()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = read()
    tensors.query.copy_(torch.randn_like(tensors.query))
    chosen["lengths"].copy_(torch.tensor([12, 97]))
    graph.replay()
    assert torch.equal(captured, read())
