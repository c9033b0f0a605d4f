"""Lazy similarities and affinities against the matrices that they replace, in the patterns of the published code."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from family_formulas import only_largest, randn, xmem_score
from stm_fast.ops.adapters import (
    Affinity,
    Scores,
    affinity,
    do_softmax,
    get_affinity,
    get_similarity,
    readout,
)

H, W, T = 3, 4, 5
M, N = H * W, T * H * W
CK, CV = 6, 7
LAZY = SimpleNamespace(get_similarity=get_similarity, do_softmax=do_softmax)


def dense_similarity(mk, ms, qk, qe, add_batch_dim=False, uncert_mask=None):
    if add_batch_dim:
        mk, ms, qk, qe = mk[None], ms[None], qk[None], qe[None]
    if uncert_mask is not None:
        qk, qe = (feature.flatten(2) * uncert_mask.flatten(2) for feature in (qk, qe))
    return xmem_score(mk, ms, qk, qe)


def dense_softmax(similarity, top_k=None, inplace=False, return_usage=False):
    kept = similarity if top_k is None else only_largest(similarity, min(top_k, similarity.shape[1]))
    dense = kept.softmax(1)
    return (dense, dense.sum(2)) if return_usage else dense


DENSE = SimpleNamespace(get_similarity=dense_similarity, do_softmax=dense_softmax)


def memory(batch=1, rows=N, queries=M):
    """Keys, shrinkage, query keys and selection."""
    mk, qk = randn(batch, CK, rows), randn(batch, CK, queries)
    return mk, 1 + randn(batch, 1, rows).square(), qk, torch.rand(batch, CK, queries, dtype=torch.float64)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class TestScores:
    @pytest.mark.parametrize("has_selection", [True, False])
    @pytest.mark.parametrize("has_shrinkage", [True, False])
    def test_equal_the_formula(self, has_shrinkage, has_selection):
        mk, ms, qk, qe = memory(batch=2)
        given = mk.unflatten(2, (T, H, W)), ms if has_shrinkage else None, qk, qe if has_selection else None
        scores = get_similarity(*given)
        assert isinstance(scores, Scores)
        assert_same(scores.dense(), xmem_score(*given))
        assert (scores.shape, scores.ndim, scores.dtype, scores.device.type) == ((2, N, M), 3, torch.float64, "cpu")

    def test_query_norm_is_a_choice(self):
        mk, ms, qk, _ = memory()
        assert_same(
            get_similarity(mk, ms, qk, None, query_norm=True).dense(), xmem_score(mk, ms, qk, torch.ones_like(qk))
        )

    @pytest.mark.parametrize(
        "index",
        [
            slice(None),
            (slice(None), slice(7, None)),
            (slice(None), slice(None, 9)),
            (slice(None), slice(-11, None)),
            (slice(None), slice(2, 30, 3)),
            (slice(None), slice(-0, None)),
            (slice(None), slice(4, 4)),
            (slice(None), slice(None), slice(2, 5)),
            (slice(None), slice(-22, None), torch.arange(M) % 3 == 0),
            (slice(None), slice(-22, None), torch.zeros(M, dtype=torch.bool)),
            (slice(None), slice(5, None), torch.tensor([3, 0, 3])),
            (slice(None), torch.arange(N) % 2 == 0),
            (slice(None), torch.tensor([8, 1]), slice(1, None)),
        ],
    )
    def test_slices_and_picks(self, index):
        given = memory(batch=2)
        found, expected = get_similarity(*given)[index], xmem_score(*given)[index]
        assert found.shape == expected.shape
        assert_same(found.dense(), expected)

    @pytest.mark.parametrize("dim", [1, -2])
    @pytest.mark.parametrize("has_shrinkage", [True, False])
    def test_are_joined_along_the_memory(self, dim, has_shrinkage):
        mk, ms, qk, qe = memory()
        given = mk, ms if has_shrinkage else None, qk, qe
        scores, expected = get_similarity(*given), xmem_score(*given)
        parts = [slice(-5, None), slice(0, 0), slice(3, 20)]
        joined = torch.cat([scores[:, part] for part in parts], dim)
        assert_same(joined.dense(), torch.cat([expected[:, part] for part in parts], 1))

    def test_of_two_stores_are_joined(self):
        (mk, ms, qk, qe), (more, stronger, _, _) = memory(), memory()
        joined = torch.concat([get_similarity(mk, ms, qk, qe), get_similarity(more, stronger, qk, qe)], dim=1)
        assert_same(joined.dense(), torch.cat([xmem_score(mk, ms, qk, qe), xmem_score(more, stronger, qk, qe)], 1))

    def test_of_different_queries_are_not_joined(self):
        mk, ms, qk, qe = memory()
        scores = get_similarity(mk, ms, qk, qe)
        for other in (
            get_similarity(mk, ms, qk + 1, qe),
            get_similarity(mk, ms, qk, qe + 1),
            get_similarity(mk, ms, qk, None),
            get_similarity(mk, None, qk, qe),
            get_similarity(mk, ms, qk, qe, backend="reference"),
            get_similarity(mk, ms, qk, qe, query_norm=False),
            scores[:, :, :5],
        ):
            with pytest.raises(ValueError, match=r"torch\.cat: found similarities of different queries or options"):
                torch.cat([scores, other], 1)


OPERATIONS = {
    "@": lambda value, affinity: value @ affinity,
    "torch.matmul": torch.matmul,
    "torch.matmul by name": lambda value, affinity: torch.matmul(value, other=affinity),
    "Tensor.matmul": lambda value, affinity: value.matmul(affinity),
    "torch.bmm": torch.bmm,
    "torch.bmm by name": lambda value, affinity: torch.bmm(input=value, mat2=affinity),
    "Tensor.bmm": lambda value, affinity: value.bmm(affinity),
}


class TestAffinity:
    @pytest.mark.parametrize("top_k", [None, 1, 4, N, N + 9])
    def test_equals_the_formula(self, top_k):
        given = memory(batch=2)
        expected, expected_usage = dense_softmax(xmem_score(*given), top_k, return_usage=True)
        found, usage = do_softmax(get_similarity(*given), top_k=top_k, inplace=True, return_usage=True)
        assert isinstance(found, Affinity)
        assert_same(found.dense(), expected)
        assert_same(usage, expected_usage)
        assert_same(get_affinity(*given, top_k=top_k).dense(), expected)
        assert found.shape == expected.shape

    @pytest.mark.parametrize("operation", OPERATIONS)
    @pytest.mark.parametrize("top_k", [None, 4])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_products_with_values(self, batch, top_k, operation):
        given, value = memory(batch), randn(batch, CV, N)
        found = OPERATIONS[operation](value, do_softmax(get_similarity(*given), top_k))
        assert_same(found, value @ dense_softmax(xmem_score(*given), top_k))

    @pytest.mark.parametrize("top_k", [None, 4])
    @pytest.mark.parametrize(("batch", "shape"), [(1, (CV, N)), (2, (CV, N)), (1, (3, CV, N)), (2, (1, CV, N))])
    def test_one_affinity_for_many_values_and_one_value_for_many_affinities(self, batch, shape, top_k):
        given, value = memory(batch), randn(*shape)
        expected = value @ dense_softmax(xmem_score(*given), top_k)
        found = value @ do_softmax(get_similarity(*given), top_k)
        assert found.shape == expected.shape
        assert_same(found, expected)

    @pytest.mark.parametrize("top_k", [None, 4])
    @pytest.mark.parametrize("queries", [slice(2, 7), torch.arange(M) % 2 == 1, torch.tensor([5, 5, 0]), slice(3, 3)])
    def test_slices_and_picks_of_queries(self, queries, top_k):
        given, value = memory(), randn(2, CV, N)
        expected = dense_softmax(xmem_score(*given), top_k)[:, :, queries]
        found = do_softmax(get_similarity(*given), top_k)[:, :, queries]
        assert found.shape == expected.shape
        assert_same(value @ found, value @ expected)
        assert_same(found.dense(), expected)
        assert_same(found.usage(), expected.sum(2))

    def test_of_one_key_for_several_queries(self):
        (mk, ms, _, _), (_, _, qk, qe) = memory(), memory(batch=2)
        value, expected = randn(2, CV, N), xmem_score(mk, ms, qk, qe)
        scores = get_similarity(mk, ms, qk, qe)
        assert scores.shape == (2, N, M)
        for top_k in (None, 4):
            assert_same(value @ do_softmax(scores, top_k), value @ dense_softmax(expected, top_k))

    def test_computes_the_scores_once_for_all_values(self, monkeypatch):
        calls = []

        def counted(*arguments, **options):
            calls.append(options)
            return memory_read(*arguments, **options)

        memory_read = affinity.memory_read
        monkeypatch.setattr(affinity, "memory_read", counted)
        found, _ = do_softmax(get_similarity(*memory()), top_k=4, return_usage=True)
        for _ in range(3):
            randn(2, CV, N) @ found
        assert len(calls) == 1

    @pytest.mark.parametrize("top_k", [None, 4])
    def test_passes_its_backend_on(self, top_k):
        scores = get_similarity(*memory(), backend="none")
        with pytest.raises(ValueError, match="backend: found 'none'"):
            randn(1, CV, N) @ do_softmax(scores, top_k)
        with pytest.raises(ValueError, match="backend: found 'none'"):
            readout(get_affinity(*memory(), backend="none", top_k=top_k), randn(1, CV, T, H, W))

    def test_of_the_dot_product(self):
        query, key, value = randn(1, M, CK), randn(1, N, CK), randn(2, N, CV)
        expected = (query @ key.mT / math.sqrt(CK)).softmax(2)
        found = Affinity(query, key, "dot")
        assert_same(found.read(value), expected @ value)
        assert_same(found.dense(), expected.mT)


def xmem_groups(peer, top_k):
    """XMem's match_memory: long-term and working memory; the second group has only the last rows of both."""
    mk, ms, qk, qe = memory()
    long, late_long, late = 20, 8, 13
    similarity = peer.get_similarity(mk, ms, qk, qe)
    long_term, working = similarity[:, :long], similarity[:, long:]
    first, usage = peer.do_softmax(
        torch.cat([long_term[:, -long:], working], 1), top_k, inplace=True, return_usage=True
    )
    second = peer.do_softmax(torch.cat([long_term[:, -late_long:], working[:, -late:]], 1), top_k=top_k, inplace=True)
    third = peer.do_softmax(working[:, -late:], top_k=top_k, inplace=True)
    values = randn(3, CV, N), randn(1, CV, late_long + late), randn(2, CV, late)
    read = torch.cat([v @ a for v, a in zip(values, (first, second, third), strict=True)], 0)
    return read.view(6, CV, H, W), usage[:, long:].flatten(), usage[:, :long].flatten()


def xmem_plus_plus_parts(peer, top_k):
    """XMem++'s match_memory: long-term, temporary and permanent memory, of which a late group has parts, also none."""
    mk, ms, qk, qe = memory()
    similarity = peer.get_similarity(mk, ms, qk, qe)
    long_term, temporary, permanent = similarity[:, :20], similarity[:, 20:44], similarity[:, 44:]
    first, usage = peer.do_softmax(torch.cat([long_term, temporary, permanent], 1), top_k, return_usage=True)
    count, kept = temporary.shape[1], permanent.shape[1]
    late = peer.do_softmax(torch.cat([temporary[:, count:], permanent[:, kept - 6 :]], dim=1), top_k=top_k)
    return randn(2, CV, N) @ first, randn(1, CV, 6) @ late, usage[:, 20:44]


def xmem_consolidation(peer, _top_k):
    """XMem's consolidation: prototypes of a group are those whose rows it has; one group has none."""
    mk, ms, _, qe = memory(queries=N)
    chosen = torch.tensor([30, 3, 55, 41, 18, 0, 59])
    similarity = peer.get_similarity(mk, ms, mk[:, :, chosen], qe[:, :, chosen])
    values = randn(2, CV, N), randn(1, CV, 25), randn(1, CV, 0)
    affinities = [peer.do_softmax(similarity[:, -v.shape[2] or N :, chosen >= N - v.shape[2]]) for v in values]
    assert affinities[2].shape[-1] == 0
    return *(v @ a for v, a in zip(values[:2], affinities, strict=False)), ms @ affinities[0]


def cutie_flip(peer, top_k):
    """Cutie's read: the frame and its mirror image as a batch, chunks of objects side by side in the channels."""
    mk, ms, qk, qe = memory(batch=2)
    affinity, usage = peer.do_softmax(peer.get_similarity(mk, ms, qk, qe), top_k=top_k, inplace=True, return_usage=True)
    chunks = randn(2, 2, CV, N), randn(2, 1, CV, N)
    reads = [(v.view(2, -1, N) @ affinity).view(2, v.shape[1], CV, -1).view(2, -1, CV, H, W) for v in chunks]
    return torch.cat(reads, 1), usage


def cutie_consolidation(peer, _top_k):
    """Cutie's consolidation, of values of objects and of the shrinkage."""
    mk, ms, _, qe = memory(batch=2, queries=N)
    affinity = peer.do_softmax(peer.get_similarity(mk, ms, mk[:, :, 5:9], qe[:, :, 5:9]))
    return randn(2, CV, N) @ affinity, ms @ affinity


def deva(peer, top_k):
    """DEVA's read and consolidation, of tensors without a batch."""
    mk, ms, qk, qe = (tensor[0] for tensor in memory())
    similarity = peer.get_similarity(mk, ms, qk, qe, add_batch_dim=True)
    affinity, usage = peer.do_softmax(similarity, top_k=top_k, inplace=True, return_usage=True)
    value = randn(3, CV, N)
    read = (value.view(3 * CV, N) @ affinity).view(3, CV, -1).view(3, CV, H, W)
    prototypes = peer.do_softmax(similarity)
    return read, usage.flatten(), (value[0] @ prototypes)[0], (ms @ prototypes)[0]


def deva_consensus(peer, top_k):
    """DEVA's spatial alignment: all objects of one frame side by side."""
    value = randn(1, 3, CV, N).flatten(1, 2)
    return ((value @ peer.do_softmax(peer.get_similarity(*memory()), top_k=top_k)).view(1, 3, CV, H, W),)


def matanyone(peer, top_k):
    """MatAnyone's read: queries, selection and result times a mask of the pixels."""
    mk, ms, qk, qe = memory(batch=2)
    mask = torch.rand(2, 1, H, W, dtype=torch.float64)
    affinity = peer.do_softmax(peer.get_similarity(mk, ms, qk, qe, uncert_mask=mask), top_k=top_k, inplace=True)
    value = randn(2, 2, CV, N)
    several = (value.view(2, 2 * CV, N) @ affinity * mask.flatten(2).expand(-1, 2 * CV, -1)).view(2, 2, CV, -1)
    return several.view(2, 2, CV, H, W), value[:, 0] @ affinity * mask.flatten(2)


PATTERNS = [
    xmem_groups,
    xmem_plus_plus_parts,
    xmem_consolidation,
    cutie_flip,
    cutie_consolidation,
    deva,
    deva_consensus,
    matanyone,
]


@pytest.mark.parametrize("top_k", [None, 5, 30])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_of_the_family(pattern, top_k):
    torch.manual_seed(1)
    expected = pattern(DENSE, top_k)
    torch.manual_seed(1)
    found = pattern(LAZY, top_k)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert_same(one, other)


@pytest.mark.parametrize("has_mask", [False, True])
def test_training_read(has_mask):
    mk, qk, qe = randn(2, CK, T, H, W), randn(2, CK, H, W), torch.rand(2, CK, H, W, dtype=torch.float64)
    ms, mv = 1 + randn(2, 1, T, H, W).square(), randn(2, 3 * CV, T, H, W)
    mask = torch.rand(2, 1, H, W, dtype=torch.float64) if has_mask else None
    expected = mv.flatten(2) @ dense_softmax(dense_similarity(mk, ms, qk, qe, uncert_mask=mask))
    if mask is not None:
        expected = expected * mask.flatten(2)
    found = readout(get_affinity(mk, ms, qk, qe, uncert_mask=mask), mv, mask)
    assert_same(found, expected.view(2, 3 * CV, H, W))


class TestGradients:
    @pytest.mark.parametrize("top_k", [None, 5])
    def test_reach_every_input_through_parts_and_picks(self, top_k):
        picked = torch.tensor([4, 1, 4])

        def read(mk, ms, qk, qe, value):
            similarity = get_similarity(mk, ms, qk, qe)
            parts = torch.cat([similarity[:, 3:9], similarity[:, 12:]], 1)[:, :, picked]
            affinity = do_softmax(parts, top_k)
            return value @ affinity, value[0] @ affinity[:, :, 1:], affinity.dense()

        given = *memory(rows=18, queries=6), randn(2, 3, 12)
        assert gradcheck(read, [tensor.requires_grad_() for tensor in given])

    def test_reach_every_input_of_a_training_read_with_a_mask(self):
        def read(mk, ms, qk, qe, mask, mv):
            return readout(get_affinity(mk, ms, qk, qe, mask), mv, mask)

        mk, ms, qk, qe = memory(rows=2 * 6, queries=6)
        given = mk, ms, qk, qe, torch.rand(1, 1, 2, 3, dtype=torch.float64), randn(1, 4, 2, 2, 3)
        assert gradcheck(read, [tensor.requires_grad_() for tensor in given])

    def test_of_scores(self):
        given = [tensor.requires_grad_() for tensor in memory(rows=9, queries=4)]
        assert gradcheck(lambda *tensors: get_similarity(*tensors).dense(), given)

    @pytest.mark.parametrize("top_k", [None, 5])
    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_inside_a_checkpoint(self, use_reentrant, top_k):
        def read(mk, ms, qk, qe, value):
            return value @ do_softmax(get_similarity(mk, ms, qk, qe), top_k)

        given = [tensor.requires_grad_() for tensor in (*memory(), randn(2, CV, N))]
        loss = checkpoint(read, *given, use_reentrant=use_reentrant).square().sum()
        loss.backward()
        expected = torch.autograd.grad(read(*given).square().sum(), given)
        assert_same([tensor.grad for tensor in given], list(expected))

    @pytest.mark.parametrize("top_k", [None, 5])
    def test_affinity_from_outside_a_checkpoint(self, top_k):
        given = [tensor.requires_grad_() for tensor in (*memory(), randn(2, CV, N))]
        *features, value = given

        def read(way):
            affinity = do_softmax(get_similarity(*features), top_k)
            return torch.autograd.grad(sum(way(affinity, v).square().sum() for v in (value, 2 * value)), given)

        found = read(lambda affinity, v: checkpoint(lambda a, v: v @ a, affinity, v, use_reentrant=False))
        assert_same(found, read(lambda affinity, v: v @ affinity))

    @pytest.mark.parametrize("top_k", [None, 5])
    def test_end_where_they_were_off(self, top_k):
        given, value = [tensor.requires_grad_() for tensor in memory()], randn(1, CV, N).requires_grad_()
        recorded = get_similarity(*given)
        with torch.no_grad():
            scores, affinity = get_similarity(*given), get_affinity(*given, top_k=top_k)
            softmax, part = do_softmax(recorded, top_k), recorded[:, :40]
        reads = value @ affinity, value @ do_softmax(scores, top_k), value @ softmax, value[..., :40] @ do_softmax(part)
        for read in reads:
            found = torch.autograd.grad(read.sum(), [*given, value], allow_unused=True)
            assert [gradient is None for gradient in found] == [True, True, True, True, False]

    def test_usage_has_none(self):
        given = [tensor.requires_grad_() for tensor in memory()]
        assert not any(do_softmax(get_similarity(*given), k, return_usage=True)[1].requires_grad for k in (None, 5))


class TestPrecision:
    @pytest.mark.parametrize("top_k", [None, 5])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_on_views(self, dtype, top_k):
        mk, ms, qk, qe = (tensor.to(dtype) for tensor in memory())
        value = randn(2, CV, 2 * N).to(dtype)[:, :, ::2]
        found = value @ do_softmax(get_similarity(mk, ms, qk, qe), top_k)
        exact = value.double() @ dense_softmax(xmem_score(*(t.double() for t in (mk, ms, qk, qe))), top_k)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("top_k", [None, 5])
    def test_autocast(self, top_k):
        mk, ms, qk, qe = (tensor.float() for tensor in memory())
        value = randn(2, CV, N).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            affinity, usage = do_softmax(get_similarity(mk, ms, qk, qe), top_k, return_usage=True)
            found = value @ affinity
        assert (found.dtype, usage.dtype) == (torch.bfloat16, torch.float32)
        rounded = (mk.bfloat16().double(), ms.double(), qk.bfloat16().double(), qe.double())
        expected = value.double() @ dense_softmax(xmem_score(*rounded), top_k)
        torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)

    def test_scores_beyond_the_range_of_exp(self):
        # exp of the published scores is infinite, or 0 for every row and 0 / 0
        for sign in (1, -1):
            mk, qk = torch.full((1, CK, N), 40.0), torch.full((1, CK, 1), sign * 40.0)
            found = torch.arange(float(N)).view(1, 1, N) @ do_softmax(get_similarity(mk, None, qk, None), top_k=3)
            torch.testing.assert_close(found, torch.tensor([[[1.0]]]))  # of equal scores the first are taken

    def test_inference_tensors(self):
        with torch.inference_mode():
            given, value = memory(), randn(1, CV, N)
            found = value @ do_softmax(get_similarity(*given))
            assert_same(found, value @ dense_softmax(xmem_score(*given)))


class TestChangesInPlace:
    def test_are_reported_before_a_read(self):
        given = mk, _, qk, _ = memory()
        for change in (mk, qk):
            scores, affinity = get_similarity(*given), get_affinity(*given)
            change.zero_()
            for read in (
                lambda affinity=affinity: randn(1, CV, N) @ affinity,
                lambda affinity=affinity: affinity[:, :, :3],
                lambda affinity=affinity: affinity.usage(),
                lambda affinity=affinity: affinity.dense(),
                lambda scores=scores: do_softmax(scores),
                lambda scores=scores: scores[:, 3:],
                lambda scores=scores: torch.cat([scores, scores], 1),
            ):
                with pytest.raises(
                    RuntimeError, match=r"found one changed in place since.*\.dense\(\) makes it a tensor"
                ):
                    read()

    def test_do_not_matter_once_weights_are_kept(self):
        given, value = memory(), randn(1, CV, N)
        affinity = get_affinity(*given, top_k=5)
        expected = value @ dense_softmax(xmem_score(*given), 5)
        given[0].zero_()
        assert_same(value @ affinity, expected)
        assert_same(value @ affinity[:, :, 2:], expected[:, :, 2:])


class TestErrors:
    @pytest.mark.parametrize(
        ("operation", "name"),
        [
            (lambda s: s - s, "__sub__"),
            (lambda s: 2 * s, "__rmul__"),
            (lambda s: s + torch.ones(1), "__add__"),
            (lambda s: torch.ones(1) + s, "__radd__"),
            (lambda s: -s, "__neg__"),
            (lambda s: s == 0, "__eq__"),
            (lambda s: s > 0, "__gt__"),
            (lambda s: bool(s), "__bool__"),
            (lambda s: list(s), "__iter__"),
            (lambda s: len(s), "__len__"),
            (lambda s: np.asarray(s), "__array__"),
            (lambda s: s @ torch.ones(1, M, CV), "__matmul__"),
            (lambda s: torch.matmul(s, torch.ones(1, M, CV)), r"torch\.matmul"),
            (lambda s: torch.ones(1, 1, CV, N) @ s, "__rmatmul__"),
            (lambda s: torch.matmul(torch.ones(1, 1, CV, N), s), r"torch\.matmul"),
            (lambda s: torch.bmm(torch.ones(1, CV, N), s, out=torch.ones(1)), r"torch\.bmm"),
            (lambda s: torch.cat([s, s], 2), r"torch\.cat"),
            (lambda s: torch.cat([s, s]), r"torch\.cat"),
            (lambda s: torch.cat([s, torch.ones(1, N, M)], 1), r"torch\.cat"),
            (lambda s: torch.stack([s, s]), r"torch\.stack"),
            (lambda s: torch.exp(s), r"torch\.exp"),
            (lambda s: torch.nn.functional.relu(s), r"torch\.nn\.functional\.relu"),
            (lambda s: torch.topk(s, k=3, dim=1), r"torch\.topk"),
            (lambda s: s[0], "index of int"),
            (lambda s: s[:, 3], "index of slice, int"),
            (lambda s: s[..., 3:], "index of ellipsis, slice"),
            (lambda s: s[:, None], "index of slice, NoneType"),
            (lambda s: s[:1], "index of slice"),
            (lambda s: s[:, :, :, :1], "index of slice, slice, slice, slice"),
            (lambda s: s[:, [1, 2]], "index of slice, list"),
            (lambda s: s[:, torch.ones(N, 1, dtype=torch.long)], "index of slice, Tensor"),
            (lambda s: s[:, torch.arange(2), torch.arange(2)], "index of slice, Tensor, Tensor"),
        ],
    )
    @pytest.mark.parametrize("kind", ["Scores", "Affinity"])
    def test_other_operations_name_themselves_and_the_way_out(self, kind, operation, name):
        scores = get_similarity(*(tensor.float() for tensor in memory()))
        lazy, call = (scores, "similarity") if kind == "Scores" else (do_softmax(scores), "affinity")
        message = f"^{name}: found a lazy {kind}, expected a tensor: {call}.dense\\(\\) makes it one$"
        with pytest.raises(TypeError, match=message):
            operation(lazy)

    def test_missing_attributes(self):
        message = r"^view: found a lazy Affinity, expected a tensor: affinity\.dense\(\) makes it one$"
        with pytest.raises(AttributeError, match=message):
            get_affinity(*memory()).view(1)
        assert not hasattr(get_similarity(*memory()), "sum")

    def test_values_are_not_weighted_by_scores(self):
        with pytest.raises(TypeError, match="__rmatmul__: found a lazy Scores"):
            randn(1, CV, N) @ get_similarity(*memory())

    def test_an_affinity_has_no_parts_along_the_memory(self):
        affinity = get_affinity(*memory())
        for index in (slice(3, None), torch.arange(3)):
            with pytest.raises(TypeError, match="index along the memory: found a lazy Affinity"):
                affinity[:, index]
        with pytest.raises(TypeError, match=r"torch\.cat: found a lazy Affinity"):
            torch.cat([affinity, affinity], 1)

    @pytest.mark.parametrize("top_k", [None, 5])
    def test_values_of_another_memory(self, top_k):
        affinity = get_affinity(*memory(), top_k=top_k)
        for rows in (N - 1, N + 1):
            with pytest.raises(ValueError, match=r"^value: "):
                randn(2, CV, rows) @ affinity
        with pytest.raises(ValueError, match="batch"):
            randn(3, CV, N) @ get_affinity(*memory(batch=2), top_k=top_k)

    def test_values_of_another_dtype(self):
        for operation in OPERATIONS.values():
            with pytest.raises(TypeError, match=r"^value: found torch\.float32, expected torch\.float64 like query$"):
                operation(randn(1, CV, N).float(), get_affinity(*memory()))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"mk": randn(1, CK + 1, N)}, "qk: found shape .*, expected batch and width of mk's"),
            ({"qk": randn(3, CK, M), "mk": randn(2, CK, N)}, "qk: found shape .*, expected batch and width of mk's"),
            ({"ms": randn(1, 1, N - 1)}, r"ms: found \(1, 59\) elements, expected \(1, 60\) like mk"),
            ({"qe": randn(1, CK, M - 1)}, r"qe: found shape \(1, 6, 11\), expected \(1, 6, 12\) like qk"),
            ({"mk": randn(CK, N)}, r"mk: found shape \(6, 60\), expected \[B, C, \.\.\.\]"),
            ({"qe": None, "uncert_mask": randn(1, 1, M)}, "uncert_mask: found without qe, expected with a selection"),
        ],
    )
    def test_features_that_do_not_match(self, change, message):
        given = dict(zip(("mk", "ms", "qk", "qe"), memory(), strict=True)) | change
        with pytest.raises(ValueError, match=message):
            get_similarity(**given)

    def test_wrong_types(self):
        mk, ms, qk, qe = memory()
        with pytest.raises(TypeError, match="mk: found ndarray, expected a tensor"):
            get_similarity(mk.numpy(), ms, qk, qe)
        with pytest.raises(TypeError, match=r"similarity: found Tensor, expected what get_similarity\(\) of stm_fast"):
            do_softmax(torch.ones(1, N, M))
        with pytest.raises(TypeError, match="top_k: found float, expected an integer or None"):
            do_softmax(get_similarity(mk, ms, qk, qe), top_k=2.5)
        with pytest.raises(ValueError, match="top_k: found 0, expected at least 1"):
            do_softmax(get_similarity(mk, ms, qk, qe), top_k=0)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [None, 5])
def test_compiles_without_graph_breaks(top_k):
    def read(mk, ms, qk, qe, value):
        similarity = get_similarity(mk, ms, qk, qe)
        joined = torch.cat([similarity[:, -20:], similarity[:, :9]], 1)
        affinity, usage = do_softmax(joined, top_k, return_usage=True)
        return value @ affinity, usage

    given = *memory(), randn(2, CV, 29)
    found = torch.compile(read, fullgraph=True, backend="eager")(*given)
    assert_same(found, read(*given))
