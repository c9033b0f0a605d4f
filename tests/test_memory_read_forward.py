"""What a memory read means: its definition written out, ties, empty and spare memory, extreme scores."""

import math

import pytest
import torch

from stm_fast import memory_read
from stm_fast.testing import ReadCase, make_tensors, options

# auto is the fastest engine that is built and supports the read
pytestmark = pytest.mark.parametrize("backend", ["reference", "auto"])


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def read_all(*tensors, **chosen):
    return memory_read(*tensors, return_lse=True, return_usage=True, **chosen)


def softmax_read(score, value):
    """Out, lse and usage of a score matrix [M, N], directly from the definition."""
    weight = score.exp()
    affinity = weight / weight.sum(1, keepdim=True)
    return affinity @ value, weight.sum(1).log(), affinity.sum(0)


def test_dot_read_is_its_definition(backend):
    query, key, value = randn(1, 3, 4), randn(1, 5, 4), randn(1, 5, 2)
    score = torch.tensor([[(q * k).sum() / math.sqrt(4) for k in key[0]] for q in query[0]], dtype=torch.float64)
    for found, expected in zip(
        read_all(query, key, value, backend=backend), softmax_read(score, value[0]), strict=True
    ):
        torch.testing.assert_close(found[0], expected)


def test_scale_multiplies_the_scores(backend):
    query, key, value = randn(1, 3, 4), randn(1, 5, 4), randn(1, 5, 2)
    expected = memory_read(query * 3, key, value, backend=backend)
    torch.testing.assert_close(memory_read(query, key, value, scale=1.5, backend=backend), expected)


@pytest.mark.parametrize("query_norm", [True, False])
@pytest.mark.parametrize("has_selection", [True, False])
@pytest.mark.parametrize("has_shrinkage", [True, False])
def test_l2_read_is_its_definition(backend, has_shrinkage, has_selection, query_norm):
    query, key, value = randn(1, 3, 4), randn(1, 5, 4), randn(1, 5, 2)
    shrinkage = 1 + torch.rand(1, 5, dtype=torch.float64) if has_shrinkage else None
    selection = torch.rand(1, 3, 4, dtype=torch.float64) if has_selection else None
    score = torch.empty(3, 5, dtype=torch.float64)
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        q, k = query[0, i], key[0, j]
        weight = torch.ones(4, dtype=torch.float64) if selection is None else selection[0, i]
        strength = 1.0 if shrinkage is None else shrinkage[0, j]
        without_query = 0 if query_norm else (weight * q * q).sum()
        score[i, j] = -strength * ((weight * (q - k) ** 2).sum() - without_query) / math.sqrt(4)
    found = read_all(
        query,
        key,
        value,
        similarity="l2",
        shrinkage=shrinkage,
        selection=selection,
        query_norm=query_norm,
        backend=backend,
    )
    for tensor, expected in zip(found, softmax_read(score, value[0]), strict=True):
        torch.testing.assert_close(tensor[0], expected)


def test_equal_l2_reads_with_and_without_the_query_term(backend):
    # without shrinkage the term is the same for every row and cancels
    query, key, value = randn(2, 3, 4), randn(2, 5, 4), randn(2, 5, 2)
    with_term = memory_read(query, key, value, similarity="l2", backend=backend)
    without = memory_read(query, key, value, similarity="l2", query_norm=False, backend=backend)
    torch.testing.assert_close(with_term, without)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_reads_only_the_largest_scores(backend, top_k):
    query, key, value = randn(1, 4, 3), randn(1, 6, 3), randn(1, 6, 2)
    score = query[0] @ key[0].T / math.sqrt(3)
    kept = score.argsort(dim=1, descending=True)[:, :top_k]
    only_kept = torch.full_like(score, -math.inf).scatter(1, kept, score.gather(1, kept))
    found = read_all(query, key, value, top_k=top_k, backend=backend)
    for tensor, expected in zip(found, softmax_read(only_kept, value[0]), strict=True):
        torch.testing.assert_close(tensor[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("top_k", [1, 3, 63, 65, 129])
def test_among_equal_scores_the_lower_index_wins(backend, dtype, top_k):
    rows = 200
    key = torch.zeros(1, rows, 8, dtype=dtype)
    value = torch.eye(rows, dtype=dtype)[None]  # the read is the affinity itself
    affinity = memory_read(torch.ones(1, 2, 8, dtype=dtype), key, value, top_k=top_k, backend=backend)
    assert torch.equal(affinity[0] > 0, (torch.arange(rows) < top_k).expand(2, rows))


def test_ties_at_the_threshold_keep_the_larger_scores(backend):
    # scores 5 at rows 6 and 90, 1 everywhere else: top 4 are those two and the first two of the rest
    key = torch.ones(1, 100, 1)
    key[0, [6, 90]] = 5
    affinity = memory_read(torch.ones(1, 1, 1), key, torch.eye(100)[None], top_k=4, backend=backend)
    assert affinity[0, 0].nonzero().flatten().tolist() == [0, 1, 6, 90]


@pytest.mark.parametrize("top_k", [5, 6, 1000])
def test_top_k_of_all_rows_is_the_dense_read(backend, top_k):
    query, key, value = randn(2, 4, 3), randn(2, 5, 3), randn(2, 5, 2)
    dense = memory_read(query, key, value, backend=backend)
    assert torch.equal(memory_read(query, key, value, top_k=top_k, backend=backend), dense)


def test_top_k_of_more_than_the_length_reads_all_rows(backend):
    query, key, value = randn(2, 4, 3), randn(2, 9, 3), randn(2, 9, 2)
    lengths = torch.tensor([3, 9])
    found = read_all(query, key, value, lengths=lengths, top_k=6, backend=backend)
    short = read_all(query[:1], key[:1, :3], value[:1, :3], backend=backend)
    torch.testing.assert_close(found[0][:1], short[0])
    torch.testing.assert_close(found[1][:1], short[1])
    torch.testing.assert_close(found[2][:1, :3], short[2])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("chosen", [{}, {"similarity": "l2", "shrinkage": True}, {"top_k": 7}], ids=str)
def test_rows_beyond_the_lengths_do_not_matter(backend, chosen, poison):
    case = ReadCase(lengths=(0, 40), poison=poison, **chosen)
    tensors = make_tensors(case, torch.float32)
    out, lse, usage = read_all(*tensors[:3], shrinkage=tensors.shrinkage, **options(case), backend=backend)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert torch.equal(lse[0], torch.full_like(lse[0], -math.inf))
    assert torch.equal(usage[0], torch.zeros_like(usage[0]))
    assert torch.equal(usage[1, 40:], torch.zeros_like(usage[1, 40:]))
    alone = [None if tensor is None else tensor[1:, :40] for tensor in tensors[1:4]]
    alone_options = options(case) | {"lengths": None}
    whole = read_all(tensors.query[1:], *alone[:2], shrinkage=alone[2], **alone_options, backend=backend)
    torch.testing.assert_close((out[1:], lse[1:], usage[1:, :40]), whole)


@pytest.mark.parametrize("score", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_huge_equal_scores_give_the_mean(backend, dtype, score):
    value = torch.arange(64, dtype=dtype).reshape(1, 64, 1)
    out, lse = memory_read(
        torch.ones(1, 3, 1, dtype=dtype),
        torch.full((1, 64, 1), score, dtype=dtype),
        value,
        return_lse=True,
        backend=backend,
    )
    assert torch.equal(out, torch.full_like(out, 31.5))
    expected = torch.tensor(score, dtype=dtype).double() + math.log(64)
    torch.testing.assert_close(lse.double(), expected.expand(1, 3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_score_far_above_the_others_reads_its_row(backend, dtype):
    key = torch.full((1, 300, 1), -1e4, dtype=dtype)
    key[0, 217] = 1e4
    value = torch.randn(1, 300, 5, dtype=dtype)
    assert torch.equal(memory_read(torch.ones(1, 2, 1, dtype=dtype), key, value, backend=backend)[0, 1], value[0, 217])


def test_a_memory_of_one_row_is_read_unchanged(backend):
    value = torch.randn(2, 1, 5)
    out, _, usage = read_all(torch.randn(2, 3, 4), torch.randn(2, 1, 4), value, backend=backend)
    assert torch.equal(out, value.expand(2, 3, 5))
    assert torch.equal(usage, torch.full((2, 1), 3.0))


@pytest.mark.parametrize(
    ("batch", "queries", "rows", "value_dim"), [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)]
)
@pytest.mark.parametrize("top_k", [None, 2])
def test_empty_dimensions(backend, batch, queries, rows, value_dim, top_k):
    out, lse, usage = read_all(
        torch.randn(batch, queries, 6),
        torch.randn(batch, rows, 6),
        torch.randn(batch, rows, value_dim),
        top_k=top_k,
        backend=backend,
    )
    assert out.shape == (batch, queries, value_dim)
    assert lse.shape == (batch, queries)
    assert usage.shape == (batch, rows)
    assert torch.equal(out.isfinite(), torch.ones_like(out, dtype=torch.bool))
    assert torch.equal(lse.isfinite(), torch.full_like(lse, rows > 0, dtype=torch.bool))
    torch.testing.assert_close(usage.sum(), torch.tensor(float(batch * queries if rows else 0)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_of_the_results(backend, dtype):
    tensors = make_tensors(ReadCase(), dtype)
    out, lse, usage = read_all(*tensors[:3], backend=backend)
    assert out.dtype == dtype
    assert lse.dtype == usage.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_only_what_was_asked_for_is_returned(backend):
    query, key, value = randn(2, 3, 4), randn(2, 5, 4), randn(2, 5, 6)
    out, lse, usage = read_all(query, key, value, backend=backend)
    torch.testing.assert_close(memory_read(query, key, value, backend=backend), out)
    torch.testing.assert_close(memory_read(query, key, value, return_lse=True, backend=backend), (out, lse))
    torch.testing.assert_close(memory_read(query, key, value, return_usage=True, backend=backend), (out, usage))


def test_shared_batches_equal_expanded_ones(backend):
    query, key, value = randn(1, 3, 4), randn(1, 5, 4), randn(3, 5, 2)
    selection, shrinkage = torch.rand(1, 3, 4, dtype=torch.float64), 1 + torch.rand(3, 5, dtype=torch.float64)
    chosen = {"similarity": "l2", "shrinkage": shrinkage, "backend": backend}
    found = read_all(query, key, value, selection=selection, **chosen)
    expanded = [tensor.expand(3, -1, -1) for tensor in (query, key, selection)]
    torch.testing.assert_close(found, read_all(*expanded[:2], value, selection=expanded[2], **chosen))


def test_expanded_batches_are_read_with_separate_selections_and_values(backend):
    query, key = randn(1, 3, 4).expand(3, -1, -1), randn(1, 5, 4).expand(3, -1, -1)
    selection, value = torch.rand(3, 3, 4, dtype=torch.float64), randn(3, 5, 2)
    chosen = {"similarity": "l2", "selection": selection, "backend": backend}
    found = read_all(query, key, value, **chosen)
    torch.testing.assert_close(found, read_all(query.contiguous(), key.contiguous(), value, **chosen))


@pytest.mark.parametrize("top_k", [None, 1])
def test_a_nan_score_is_not_ignored(backend, top_k):
    query, key, value = randn(1, 2, 4), randn(1, 300, 4), randn(1, 300, 40)
    key[:, 17] = math.nan
    out, _, usage = read_all(query, key, value, top_k=top_k, backend=backend)
    assert out.isnan().all()
    assert usage[:, 17].isnan().all()
