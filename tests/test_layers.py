"""The layer of STM and the adapters of its family, each against its model's formula written out from the paper."""

import math

import pytest
import torch

from family_formulas import only_largest, randn, squared_distance, weighted, xmem_score
from stm_fast import MemoryRead, memory_read
from stm_fast.ops.adapters import (
    AOTLongTermAttention,
    MiVOSMemoryReader,
    STCNMemoryReader,
    get_affinity,
    readout,
    stcn_read,
    xmem_read,
)

T, H, W = 3, 4, 5
CK, CV = 8, 6


class TestSTM:
    """Oh et al., ICCV 2019, section 3.2."""

    def formula(self, mk, mv, qk, qv):
        score = torch.einsum("bcn,bcm->bnm", mk.flatten(2), qk.flatten(2)) / math.sqrt(mk.shape[1])
        return torch.cat([weighted(score, mv.flatten(2)).reshape(qv.shape), qv], dim=1)

    def test_reads_as_published(self):
        tensors = randn(2, CK, T, H, W), randn(2, CV, T, H, W), randn(2, CK, H, W), randn(2, CV, H, W)
        read, affinity = MemoryRead()(*tensors)
        assert affinity is None
        torch.testing.assert_close(read, self.formula(*tensors))

    def test_memory_of_another_size_and_gradients(self):
        tensors = randn(2, CK, T, 2, 3), randn(2, CV, T, 2, 3), randn(2, CK, H, W), randn(2, CV, H, W)
        tensors = [tensor.requires_grad_() for tensor in tensors]
        found = torch.autograd.grad(MemoryRead()(*tensors)[0].square().sum(), tensors)
        torch.testing.assert_close(found, torch.autograd.grad(self.formula(*tensors).square().sum(), tensors))

    def test_drops_into_a_network_without_changing_its_weights(self):
        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = torch.nn.Conv2d(3, CK, 1)
                self.Memory = torch.nn.Identity()

        network = Network()
        names = list(network.state_dict())
        network.Memory = MemoryRead()
        assert list(network.state_dict()) == names

    def test_passes_its_backend_on(self):
        tensors = randn(2, CK, T, H, W), randn(2, CV, T, H, W), randn(2, CK, H, W), randn(2, CV, H, W)
        with pytest.raises(ValueError, match="backend: found 'none'"):
            MemoryRead(backend="none")(*tensors)


class TestSTCN:
    """Cheng et al., NeurIPS 2021, section 3.3: the negative squared Euclidean distance."""

    def test_training_read(self):
        mk, qk, mv, qv = randn(2, CK, T, H, W), randn(2, CK, H, W), randn(2, CV, T, H, W), randn(2, 7, H, W)
        reader = STCNMemoryReader()
        affinity = reader.get_affinity(mk, qk)
        score = -squared_distance(mk.flatten(2), qk.flatten(2)) / math.sqrt(CK)
        for value in (mv, 2 * mv):  # one affinity, two objects
            expected = torch.cat([weighted(score, value.flatten(2)).reshape(2, CV, H, W), qv], dim=1)
            torch.testing.assert_close(reader.readout(affinity, value, qv), expected)

    @pytest.mark.parametrize("top_k", [20, 3, None])
    def test_test_time_read_of_several_objects(self, top_k):
        objects = 3
        mk, qk, mv = randn(1, CK, T * H * W), randn(1, CK, H * W), randn(objects, CV, T * H * W)
        score = -squared_distance(mk, qk) / math.sqrt(CK)
        if top_k:
            score = only_largest(score, top_k)
        found = stcn_read(mk, qk, mv, top_k=top_k)
        torch.testing.assert_close(found, weighted(score.expand(objects, -1, -1), mv))

    def test_fewer_rows_than_top_k(self):
        mk, qk, mv = randn(1, CK, 7), randn(1, CK, H * W), randn(2, CV, 7)
        torch.testing.assert_close(stcn_read(mk, qk, mv, top_k=20), stcn_read(mk, qk, mv, top_k=None))

    def test_scores_that_overflow_the_published_exponential(self):
        # q.q / sqrt(Ck) without the subtracted maximum is beyond exp's float32 range
        qk = torch.full((1, CK, 1), 40.0)
        mk, mv = qk.expand(1, CK, 30), torch.arange(30.0).reshape(1, 1, 30)
        torch.testing.assert_close(stcn_read(mk, qk, mv), torch.tensor([[[9.5]]]))


class TestXMem:
    """Cheng and Schwing, ECCV 2022, equation 2; Cutie and DEVA read the same way."""

    objects = 2

    def tensors(self, *size):
        mk, mv = randn(1, CK, *size), randn(self.objects, CV, *size)
        ms = 1 + randn(1, 1, *size).square()
        qk, qe = randn(1, CK, H, W), torch.rand(1, CK, H, W, dtype=torch.float64)
        return mk, ms, qk, qe, mv

    @pytest.mark.parametrize("has_selection", [True, False])
    @pytest.mark.parametrize("has_shrinkage", [True, False])
    def test_training_read_of_objects_side_by_side(self, has_shrinkage, has_selection):
        mk, ms, qk, qe, _ = self.tensors(T, H, W)
        ms, qe = ms if has_shrinkage else None, qe if has_selection else None
        mv = randn(1, self.objects * CV, T, H, W)
        expected = weighted(xmem_score(mk, ms, qk, qe), mv.flatten(2)).reshape(1, self.objects * CV, H, W)
        torch.testing.assert_close(readout(get_affinity(mk, ms, qk, qe), mv), expected)

    @pytest.mark.parametrize("has_selection", [True, False])
    @pytest.mark.parametrize("top_k", [30, 4, None])
    def test_test_time_read_with_usage(self, top_k, has_selection):
        mk, ms, qk, qe, mv = self.tensors(T * H * W)
        qe = qe if has_selection else None
        score = xmem_score(mk, ms, qk, qe)
        if top_k:
            score = only_largest(score, top_k)
        out, usage = xmem_read(mk, ms, qk, qe, mv, top_k=top_k, return_usage=True)
        torch.testing.assert_close(out, weighted(score.expand(self.objects, -1, -1), mv))
        torch.testing.assert_close(usage, score.softmax(1).sum(2))
        assert torch.equal(xmem_read(mk, ms, qk, qe, mv, top_k=top_k), out)

    def test_query_norm_is_a_choice(self):
        mk, ms, qk, _, mv = self.tensors(T * H * W)
        full = -ms.flatten(2).mT * squared_distance(mk, qk.flatten(2)) / math.sqrt(CK)
        expected = weighted(full.expand(self.objects, -1, -1), mv)
        torch.testing.assert_close(xmem_read(mk, ms, qk, None, mv, top_k=None, query_norm=True), expected)
        published = xmem_read(mk, ms, qk, None, mv, top_k=None)
        assert not torch.allclose(published, expected, atol=1e-3)

    def test_a_later_group_reads_the_last_rows(self):
        mk, ms, qk, qe, mv = self.tensors(T * H * W)
        score = only_largest(xmem_score(mk[..., -22:], ms[..., -22:], qk, qe), 5)
        found = xmem_read(mk[..., -22:], ms[..., -22:], qk, qe, mv[..., -22:], top_k=5)
        torch.testing.assert_close(found, weighted(score.expand(self.objects, -1, -1), mv[..., -22:]))

    def test_prototypes_read_the_shrinkage_as_a_value(self):
        # consolidation: prototypes are the queries, and values and shrinkages are read by the same affinity
        mk, ms, _, _, mv = self.tensors(T * H * W)
        prototypes, selection = mk[..., ::7], torch.rand(1, CK, 9, dtype=torch.float64)
        affinity = get_affinity(mk, ms, prototypes, selection)
        score = xmem_score(mk, ms, prototypes, selection)
        torch.testing.assert_close(affinity.read(ms.mT).mT, weighted(score, ms))
        torch.testing.assert_close(affinity.read(mv.mT).mT, weighted(score.expand(self.objects, -1, -1), mv))

    def test_gradients_reach_every_input(self):
        mk, ms, qk, qe, _ = (tensor.requires_grad_() for tensor in self.tensors(T, H, W))
        mv = randn(1, CV, T, H, W).requires_grad_()
        inputs = mk, ms, qk, qe, mv
        found = torch.autograd.grad(readout(get_affinity(mk, ms, qk, qe), mv).square().sum(), inputs)
        expected = weighted(xmem_score(mk, ms, qk, qe), mv.flatten(2)).square().sum()
        torch.testing.assert_close(found, torch.autograd.grad(expected, inputs))

    def test_scores_that_underflow_in_half_precision(self):
        # exp of the published scores is 0 in float16 for every row, and 0 / 0 is NaN
        mk, qk = torch.zeros(1, CK, 40, dtype=torch.float16), torch.full((1, CK, 1), 4.0, dtype=torch.float16)
        mv = torch.ones(1, CV, 40, dtype=torch.float16)
        out = xmem_read(mk, None, qk, torch.ones_like(qk), mv)
        assert torch.equal(out, torch.ones(1, CV, 1, dtype=torch.float16))


class TestMiVOS:
    """Cheng et al., CVPR 2021, section 3.2: STM's read over the top_k rows."""

    @pytest.mark.parametrize("top_k", [50, 6, None])
    def test_reads_the_objects_at_once(self, top_k):
        objects = 3
        mk, mv, qk = randn(objects, CK, T, H, W), randn(objects, CV, T, H, W), randn(1, CK, H, W)
        score = torch.einsum("bcn,cm->bnm", mk.flatten(2), qk[0].flatten(1)) / math.sqrt(CK)
        if top_k:
            score = only_largest(score, top_k)
        found = MiVOSMemoryReader(top_k)(mk, mv, qk)
        torch.testing.assert_close(found, weighted(score, mv.flatten(2)).reshape(objects, CV, H, W))
        one_by_one = [MiVOSMemoryReader(top_k)(mk[i : i + 1], mv[i : i + 1], qk) for i in range(objects)]
        torch.testing.assert_close(torch.cat(one_by_one), found)

    @pytest.mark.parametrize("top_k", [6, None])
    def test_gaussian_around_the_best_query_of_each_row(self, top_k):
        objects, sigma = 2, 1.5
        mk, mv, qk = randn(objects, CK, T, H, W), randn(objects, CV, T, H, W), randn(1, CK, H, W)
        score = torch.einsum("bcn,cm->bnm", mk.flatten(2), qk[0].flatten(1)) / math.sqrt(CK)
        y, x = torch.cartesian_prod(torch.arange(H).double(), torch.arange(W).double()).T  # exact squares
        best = score.argmax(2)
        squared = (y - y[best][..., None]).square() + (x - x[best][..., None]).square()  # [O, N, M]
        score = score - squared / (2 * sigma**2)
        score = only_largest(score, top_k) if top_k else score
        found = MiVOSMemoryReader(top_k, km=sigma)(mk, mv, qk)
        torch.testing.assert_close(found, weighted(score, mv.flatten(2)).reshape(objects, CV, H, W), rtol=1e-9, atol=0)


class TestAOT:
    """Yang et al., NeurIPS 2021, section 3.2: attention with heads; the code's distance, length and top-k variants."""

    width, heads, batch = 16, 4, 2

    def layer(self, **chosen):
        return AOTLongTermAttention(self.width, self.heads, **chosen).double().eval()

    def tensors(self, queries=H * W, rows=T * H * W):
        return [randn(n, self.batch, self.width) for n in (queries, rows, rows)]

    def formula(self, layer, Q, K, V, factor=1.0, use_dis=False, count=None):
        if layer.use_linear:
            Q, K, V = layer.linear_Q(Q), layer.linear_K(K), layer.linear_V(V)
        q, k, v = (x.reshape(len(x), self.batch, self.heads, -1).permute(1, 2, 3, 0).flatten(0, 1) for x in (Q, K, V))
        score = factor * torch.einsum("bcn,bcm->bnm", k, q) / math.sqrt(self.width // self.heads)
        if use_dis:
            score = 2 * score - k.square().sum(1)[:, :, None]
        if count:
            score = only_largest(score, count)
        heads = weighted(score, v).reshape(self.batch, self.width, -1)
        return layer.projection(heads.permute(2, 0, 1))

    @pytest.mark.parametrize("use_linear", [True, False])
    @pytest.mark.parametrize("use_dis", [True, False])
    def test_reads_as_published(self, use_linear, use_dis):
        layer, tensors = self.layer(use_linear=use_linear, use_dis=use_dis), self.tensors()
        out, attention = layer(*tensors)
        assert attention is None
        torch.testing.assert_close(out, self.formula(layer, *tensors, use_dis=use_dis))

    @pytest.mark.parametrize(
        ("top_k", "count"), [(7, 7), (0.25, 15), (-0.5, 10), (-1, None), (0, None), (-2, None), (100, None)]
    )
    def test_top_k_is_a_count_a_share_of_the_rows_or_of_the_queries(self, top_k, count):
        layer, tensors = self.layer(top_k=top_k), self.tensors()
        torch.testing.assert_close(layer(*tensors)[0], self.formula(layer, *tensors, count=count))

    @pytest.mark.parametrize("use_dis", [True, False])
    def test_a_long_memory_sharpens_the_scores(self, use_dis):
        layer, tensors = self.layer(max_mem_len_ratio=2, use_dis=use_dis), self.tensors()
        expected = self.formula(layer, *tensors, factor=math.log(3) / math.log(2), use_dis=use_dis)
        torch.testing.assert_close(layer(*tensors)[0], expected)
        short = self.tensors(rows=2 * H * W)
        torch.testing.assert_close(layer(*short)[0], self.formula(layer, *short, use_dis=use_dis))

    def test_training_reads_everything_unsharpened(self):
        layer, tensors = self.layer(top_k=7, max_mem_len_ratio=2).train(), self.tensors()
        torch.testing.assert_close(layer(*tensors)[0], self.formula(layer, *tensors))

    def test_state_dict_has_the_published_names(self):
        names = {
            f"{layer}.{kind}"
            for layer in ("linear_Q", "linear_K", "linear_V", "projection")
            for kind in ("weight", "bias")
        }
        assert set(self.layer().state_dict()) == names

    def test_refuses_unsupported_options(self):
        with pytest.raises(ValueError, match=r"dropout: found 0\.1, expected 0"):
            self.layer(dropout=0.1)
        with pytest.raises(ValueError, match="top_k: found nan, expected a number"):
            self.layer(top_k=math.nan)


@pytest.mark.slow
def test_the_adapters_work_under_autocast_and_compile():
    mk, qk, mv, qv = (torch.randn(*s) for s in ((2, CK, T, H, W), (2, CK, H, W), (2, CV, T, H, W), (2, 7, H, W)))
    reader = STCNMemoryReader()

    def read(mk, qk, mv, qv):
        return reader.readout(reader.get_affinity(mk, qk), mv, qv)

    expected = read(mk, qk, mv, qv)
    torch.testing.assert_close(torch.compile(read, fullgraph=True, backend="eager")(mk, qk, mv, qv), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(read(mk, qk, mv, qv), expected, rtol=0.05, atol=0.05)


def test_views_of_channel_first_features_are_not_copied():
    # the adapters hand over strides, not copies
    mk, qk, mv = randn(1, CK, T, H, W), randn(1, CK, H, W), randn(1, CV, T, H, W)
    affinity = STCNMemoryReader().get_affinity(mk, qk)
    assert affinity.key.data_ptr() == mk.data_ptr()
    assert affinity.query.data_ptr() == qk.data_ptr()
    direct = memory_read(qk.flatten(2).mT, mk.flatten(2).mT, mv.flatten(2).mT, similarity="l2")
    torch.testing.assert_close(affinity.read(mv.flatten(2).mT), direct)
