"""Random shapes, strides, lengths and options: the C++ engine against the reference."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stm_fast.choices import SIMILARITIES
from stm_fast.ops.backends import BACKENDS
from stm_fast.testing import ReadCase, check_case, make_tensors
from stm_fast.testing.runs import leaves, random_upstream, read_outputs, with_gradients

pytestmark = pytest.mark.skipif(
    bool(next(backend for backend in BACKENDS if backend.name == "cpp").absent_reasons()),
    reason="the C++ engine is absent",
)
# derandomized: every run of CI tries the same cases
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def cases(draw):
    batch, rows = draw(st.integers(1, 3)), draw(st.integers(1, 150))
    similarity = draw(st.sampled_from(SIMILARITIES))
    l2 = similarity == "l2"
    lengths = st.tuples(*[st.integers(0, rows)] * batch)
    return ReadCase(
        batch=batch,
        queries=draw(st.integers(1, 70)),
        rows=rows,
        key_dim=draw(st.integers(1, 40)),
        value_dim=draw(st.integers(1, 70)),
        shared_query=draw(st.booleans()),
        shared_key=draw(st.booleans()),
        shared_shrinkage=draw(st.sampled_from([None, True, False])),
        lengths=draw(st.none() | lengths),
        similarity=similarity,
        shrinkage=l2 and draw(st.booleans()),
        selection=l2 and draw(st.booleans()),
        query_norm=draw(st.booleans()),
        top_k=draw(st.none() | st.integers(1, rows + 1)),
        return_usage=draw(st.booleans()),
        spread=draw(st.sampled_from([0.0, 1.0, 10.0])),
        channels_first=draw(st.booleans()),
    )


@pytest.mark.slow
@SETTINGS
@given(case=cases(), seed=st.integers(0, 1000))
def test_equal_to_the_reference_in_float64(case, seed):
    tensors = leaves(make_tensors(case, torch.float64, seed=seed), torch.float64, True)
    results = []
    for backend in ("cpp", "reference"):
        outputs = read_outputs(case, tensors, backend)
        results.append(with_gradients(outputs, tensors, random_upstream(outputs)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@SETTINGS
@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@example(case=ReadCase(batch=1, queries=1, rows=1, key_dim=1, value_dim=1), dtype=torch.float32)
def test_no_worse_than_eager(case, dtype):
    check_case(case, dtype, "cpp")


@SETTINGS
@given(
    step=st.tuples(*[st.integers(1, 3)] * 3),
    order=st.permutations([0, 1, 2]),
    offset=st.integers(0, 5),
)
def test_any_strides_give_the_same_bits(step, order, offset):
    def strided(tensor):
        """The same numbers, with gaps in every dimension and in another memory order."""
        moved = tensor.permute(order)
        shape = [size * gap for size, gap in zip(moved.shape, step, strict=True)]
        storage = torch.full((offset + torch.Size(shape).numel(),), torch.nan, dtype=tensor.dtype)
        view = storage[offset:].view(shape)[tuple(slice(None, None, gap) for gap in step)]
        view.copy_(moved)
        return view.permute(torch.tensor(order).argsort().tolist())

    case = ReadCase(queries=19, rows=37, return_usage=True)
    tensors = make_tensors(case, torch.float32)
    views = tensors._replace(**{name: strided(getattr(tensors, name)) for name in ("query", "key", "value")})
    results = []
    for leaf_tensors in (leaves(tensors, torch.float32, True), leaves(views, torch.float32, True)):
        outputs = read_outputs(case, leaf_tensors, "cpp")
        results.append(with_gradients(outputs, leaf_tensors, random_upstream(outputs)))
    for name, expected in results[0].items():
        assert torch.equal(results[1][name], expected), name
