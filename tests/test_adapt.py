"""adapt(): layers, classes and functions of stand-ins for published code are found by name and signature, and replaced.

The stand-ins have the names, attributes and shapes of the published code; their formulas are written out, in float64.
"""

import copy
import logging
import math
import pickle
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stm_fast
from family_formulas import assert_near, randn
from stm_fast.ops.adapters import AOTLongTermAttention, STMMemory

CK, CV, T, H, W = 4, 6, 2, 3, 3
M, N = H * W, T * H * W


def softmax(score, dim):
    return score.exp() / score.exp().sum(dim, keepdim=True)


def only_largest(score, count, dim):
    least = score.topk(count, dim).values.amin(dim, keepdim=True)
    return score.masked_fill(score < least, -math.inf)


def dot_read(mk, mv, qk, count=None, sigma=None):
    """[B, Ck, T, H, W], [B, Cv, T, H, W] and [B, Ck, H, W] to [B, Cv, H, W]."""
    score = torch.einsum("bcthw,bcyx->bthwyx", mk, qk).flatten(1, 3) / math.sqrt(mk.shape[1])
    if sigma is not None:
        best = score.flatten(2).argmax(2)[..., None, None]
        y, x = torch.arange(H).double()[:, None], torch.arange(W).double()
        score = score - ((y - best // W).square() + (x - best % W).square()) / (2 * sigma**2)
    score = score if count is None else only_largest(score, count, 1)
    return torch.einsum("bnyx,bvn->bvyx", softmax(score, 1), mv.flatten(2))


class STM:
    class Memory(nn.Module):
        def forward(self, m_in, m_out, q_in, q_out):
            return torch.cat([dot_read(m_in, m_out, q_in), q_out], 1), "the affinity"


class STMTraining:
    class Memory(nn.Module):
        def forward(self, m_in, m_out, q_in, q_out):
            frames = (rows.mT.unflatten(2, (T, H, W)) for rows in (m_in, m_out))
            return torch.cat([dot_read(*frames, q_in), q_out], 1), "the affinity"


class STCN:
    class MemoryReader(nn.Module):
        def get_affinity(self, mk, qk):
            distance = (mk.flatten(2)[..., None] - qk.flatten(2)[:, :, None]).square().sum(1)
            return softmax(-distance / math.sqrt(mk.shape[1]), 1)

        def readout(self, affinity, mv, qv):
            return torch.cat([(mv.flatten(2) @ affinity).reshape(*mv.shape[:2], H, W), qv], 1)


class MaskPropagation:
    class MemoryReader(nn.Module):
        def forward(self, mk, mv, qk, qv):
            return torch.cat([dot_read(mk, mv, qk), qv], 1)


class MiVOS:
    class EvalMemoryReader(nn.Module):
        def __init__(self, top_k, km=None):
            super().__init__()
            self.top_k = top_k
            self.km = km

        def forward(self, mk, mv, qk):
            return dot_read(mk, mv, qk.expand(len(mk), -1, -1, -1), self.top_k, self.km)


class Heads(nn.Module):
    """What AOT and DeAOT have in common."""

    def __init__(self, num_head=2, drop_prob=0.0, top_k=-1, max_mem_len_ratio=-1.0):
        super().__init__()
        self.num_head = num_head
        self.d_att = CK
        self.use_linear = False
        self.use_dis = False
        self.max_mem_len_ratio = max_mem_len_ratio
        self.top_k = top_k
        self.drop_prob = drop_prob
        self.projection = nn.Linear(num_head * CV, 5)

    def weighted(self, Q, K, V):
        """Sequences [rows, batch, heads * width]."""
        q, k, v = (x.unflatten(-1, (self.num_head, -1)) for x in (Q, K, V))
        score = torch.einsum("mbhc,nbhc->mnbh", q, k) / math.sqrt(self.d_att)
        if self.max_mem_len_ratio > 0:
            score = score * math.log(len(K) / len(Q)) / math.log(self.max_mem_len_ratio)
        if self.top_k > 0:
            score = only_largest(score, self.top_k, 1)
        return torch.einsum("mnbh,nbhv->mbhv", softmax(score, 1), v).flatten(-2)


class AOT:
    class MultiheadAttention(Heads):
        def forward(self, Q, K, V):
            return self.projection(self.weighted(Q, K, V)), "the attention"


class Convolution(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)

    def forward(self, x, size_2d):
        return self.conv(x.unflatten(0, size_2d).permute(2, 3, 0, 1)).flatten(2).permute(2, 0, 1)


class DeAOT:
    class GatedPropagation(Heads):
        def __init__(self, **options):
            super().__init__(**options)
            self.dw_conv = Convolution(self.num_head * CV)

        def forward(self, Q, K, V, U, size_2d):
            return self.projection(self.dw_conv(self.weighted(Q, K, V) * U, size_2d)), "the attention"


class Attention(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout_p = dropout
        self.q_proj = nn.Linear(2 * CK, 2 * CK)


class SAM2:
    class RoPEAttention(Attention):
        def forward(self, q, k, v, num_k_exclude_rope=0):
            turned = torch.cat([k[:, : k.shape[1] - num_k_exclude_rope].flip(-1), k[:, -num_k_exclude_rope:]], 1)
            heads = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (self.q_proj(q), turned, v)]
            dropout_p = self.dropout_p if self.training else 0.0
            return F.scaled_dot_product_attention(*heads, dropout_p=dropout_p).transpose(1, 2).flatten(-2)


class Family(NamedTuple):
    attribute: str
    layer: Callable[..., nn.Module]
    call: Callable[..., torch.Tensor]
    shapes: tuple[tuple[int, ...], ...]
    line: str


def gated(layer, *tensors):
    return layer(*tensors, (H, W))[0]


FRAMES = (2, CK, T, H, W), (2, CV, T, H, W), (2, CK, H, W), (2, CV, H, W)
SEQUENCES = (M, 2, 2 * CK), (N, 2, 2 * CK), (N, 2, 2 * CV)
FAMILIES = {
    "STM": Family("Memory", STM.Memory, lambda r, *t: r(*t)[0], FRAMES, "Memory of STM -> stm_fast.memory_read"),
    "STM-Training": Family(
        "Memory",
        STMTraining.Memory,
        lambda r, *t: r(*t)[0],
        ((2, N, CK), (2, N, CV), *FRAMES[2:]),
        "Memory of STM -> stm_fast.memory_read",
    ),
    "STCN": Family(
        "memory",
        STCN.MemoryReader,
        lambda r, mk, mv, qk, qv: r.readout(r.get_affinity(mk, qk), mv, qv),
        FRAMES,
        "MemoryReader of STCN -> stm_fast.memory_read",
    ),
    "Mask-Propagation": Family(
        "memory",
        MaskPropagation.MemoryReader,
        lambda r, *t: r(*t),
        FRAMES,
        "MemoryReader of Mask-Propagation -> stm_fast.memory_read",
    ),
    "MiVOS": Family(
        "memory",
        lambda: MiVOS.EvalMemoryReader(5),
        lambda r, *t: r(*t),
        (*FRAMES[:2], (1, CK, H, W)),
        "EvalMemoryReader of MiVOS and Mask-Propagation -> stm_fast.memory_read",
    ),
    "MiVOS with KMN's kernel": Family(
        "memory",
        lambda: MiVOS.EvalMemoryReader(5, km=1.5),
        lambda r, *t: r(*t),
        (*FRAMES[:2], (1, CK, H, W)),
        "EvalMemoryReader of MiVOS and Mask-Propagation -> stm_fast.memory_read",
    ),
    "AOT": Family(
        "long_term_attn",
        lambda: AOT.MultiheadAttention(top_k=7, max_mem_len_ratio=1.5).eval(),
        lambda r, *t: r(*t)[0],
        SEQUENCES,
        "MultiheadAttention of AOT -> stm_fast.memory_read",
    ),
    "DeAOT": Family(
        "long_term_attn",
        lambda: DeAOT.GatedPropagation(num_head=1),
        gated,
        ((M, 2, CK), (N, 2, CK), (N, 2, CV), (M, 2, CV)),
        "GatedPropagation of DeAOT and PAOT -> stm_fast.memory_read",
    ),
    "SAM 2": Family(
        "cross_attn_image",
        SAM2.RoPEAttention,
        lambda r, *t: r(*t, num_k_exclude_rope=2),
        ((2, M, 2 * CK), (2, N, 2 * CK), (2, N, 2 * CV)),
        "RoPEAttention of SAM 2 -> stm_fast.memory_read",
    ),
}


class Network(nn.Module):
    """A stand-in for a whole network: weights before the read, and the read."""

    def __init__(self, family):
        super().__init__()
        self.family = family
        self.gain = nn.Parameter(torch.tensor(0.7))
        setattr(self, FAMILIES[family].attribute, FAMILIES[family].layer())

    def forward(self, *tensors):
        chosen = FAMILIES[self.family]
        return chosen.call(getattr(self, chosen.attribute), *(self.gain * tensor for tensor in tensors))


def network(family):
    return Network(family).double(), [randn(*shape) for shape in FAMILIES[family].shapes]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


class TestLayers:
    def test_reads_the_same_and_restores(self, family):
        model, tensors = network(family)
        layer = getattr(model, FAMILIES[family].attribute)
        before, state, published = model(*tensors), model.state_dict(), type(layer)
        adapted = stm_fast.adapt(model)
        assert adapted.replaced == (f"{FAMILIES[family].attribute}: {FAMILIES[family].line}",)
        assert type(layer) is not published
        assert isinstance(layer, published)
        assert_near(model(*tensors), before)
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
        adapted.restore()
        adapted.restore()
        assert type(layer) is published
        assert torch.equal(model(*tensors), before)

    def test_the_read_is_ours(self, family):
        # no processor runs the Triton kernels, and their refusal is ours
        model, tensors = network(family)
        with stm_fast.adapt(model, backend="triton"), pytest.raises(NotImplementedError, match="triton"):
            model(*tensors)

    def test_gradients(self, family):
        model, tensors = network(family)
        inputs = [*(tensor.requires_grad_() for tensor in tensors), *model.parameters()]
        expected = torch.autograd.grad(model(*tensors).square().sum(), inputs)
        stm_fast.adapt(model)
        for found, other in zip(torch.autograd.grad(model(*tensors).square().sum(), inputs), expected, strict=True):
            assert_near(found, other)

    def test_in_data_parallel(self, family):
        model, tensors = network(family)
        expected = model(*tensors)
        parallel = nn.DataParallel(model)
        adapted = stm_fast.adapt(parallel)
        assert adapted.replaced[0].startswith(f"module.{FAMILIES[family].attribute}: ")
        assert_near(parallel(*tensors), expected)
        replica = getattr(model, FAMILIES[family].attribute)._replicate_for_data_parallel()
        assert type(replica) is type(getattr(model, FAMILIES[family].attribute))
        assert_near(FAMILIES[family].call(replica, *(model.gain * tensor for tensor in tensors)), expected)

    def test_hooks_and_mode_stay(self, family):
        model, tensors = network(family)
        layer = getattr(model, FAMILIES[family].attribute)
        mode, calls = layer.training, []
        layer.register_forward_hook(lambda *_: calls.append(1))
        model(*tensors)
        hooked = len(calls)
        stm_fast.adapt(model)
        model(*tensors)
        assert len(calls) == 2 * hooked
        assert layer.training == mode

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
    def test_copies_are_adapted(self, family, copied):
        model, tensors = network(family)
        adapted = stm_fast.adapt(model, backend="reference")
        expected = model(*tensors)
        other = copied(model)
        adapted.restore()
        layer = getattr(other, FAMILIES[family].attribute)
        assert type(layer) is not type(getattr(model, FAMILIES[family].attribute))
        assert layer.backend == "reference"
        assert torch.equal(other(*tensors), expected)

    def test_a_second_call_replaces_nothing(self, family):
        model, tensors = network(family)
        first = stm_fast.adapt(model)
        expected = model(*tensors)
        with stm_fast.adapt(model) as second:
            assert second.replaced == ()
            assert str(second) == f"nothing left to replace: stm_fast reads already in {FAMILIES[family].attribute}"
        assert torch.equal(model(*tensors), expected)
        first.restore()
        assert stm_fast.adapt(model).replaced == first.replaced

    def test_subclasses_that_keep_the_read(self, family):
        model, tensors = network(family)
        layer = getattr(model, FAMILIES[family].attribute)
        layer.__class__ = type("Mine", (type(layer),), {"extra": 1})
        expected = model(*tensors)
        assert len(stm_fast.adapt(model).replaced) == 1
        assert layer.extra == 1
        assert_near(model(*tensors), expected)


@pytest.mark.slow
def test_in_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for family in FAMILIES:
            model, tensors = network(family)
            expected = model(*tensors)
            parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
            stm_fast.adapt(parallel)
            found = parallel(*tensors)
            assert_near(found, expected)
            found.sum().backward()
            assert model.gain.grad is not None
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_compiled_models(family):
    torch.compiler.reset()
    model, tensors = network(family)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(*tensors)
    with stm_fast.adapt(compiled):
        assert_near(compiled(*tensors), expected)
    with stm_fast.adapt(compiled, backend="triton"), pytest.raises(Exception, match="triton"):
        compiled(*tensors)
    assert torch.equal(compiled(*tensors), expected)
    torch.compiler.reset()
    with stm_fast.adapt(model):
        assert_near(torch.compile(model, backend="eager", fullgraph=True)(*tensors), expected)


class TestOptions:
    """What an adapted layer leaves to the published one."""

    def test_dropout_of_weights_in_training(self):
        model = nn.Sequential(AOT.MultiheadAttention(drop_prob=0.1)).double()
        tensors = [randn(*shape) for shape in SEQUENCES]
        stm_fast.adapt(model)
        assert model[0].train()(*tensors)[1] == "the attention"
        assert model[0].eval()(*tensors)[1] is None

    def test_a_share_as_top_k_which_not_all_versions_read_alike(self):
        model = nn.Sequential(DeAOT.GatedPropagation(num_head=1)).double()
        tensors = [randn(*shape) for shape in FAMILIES["DeAOT"].shapes]
        stm_fast.adapt(model)
        assert model[0](*tensors, (H, W))[1] is None
        model[0].top_k = -0.5
        assert model[0](*tensors, (H, W))[1] == "the attention"

    def test_dropout_and_masks_of_sam2(self):
        model = nn.Sequential(SAM2.RoPEAttention(dropout=0.5)).double()
        tensors = [randn(*shape) for shape in FAMILIES["SAM 2"].shapes]
        stm_fast.adapt(model, backend="triton")
        model[0](*tensors, num_k_exclude_rope=1)  # in training, by PyTorch
        with pytest.raises(NotImplementedError, match="triton"):
            model[0].eval()(*tensors, num_k_exclude_rope=1)

    def test_sam2_in_half_precision(self):
        model = nn.Sequential(SAM2.RoPEAttention()).bfloat16()
        tensors = [randn(*shape).bfloat16() for shape in FAMILIES["SAM 2"].shapes]
        expected = model[0](*tensors, num_k_exclude_rope=1)
        stm_fast.adapt(model)  # PyTorch's kernel is the faster one
        assert torch.equal(model[0](*tensors, num_k_exclude_rope=1), expected)


class TestNothingFound:
    def error(self, model):
        with pytest.raises(ValueError, match=r"^model: found ") as caught:
            stm_fast.adapt(model)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_says_what_was_looked_for_and_found(self):
        message = self.error(nn.Linear(1, 1))
        assert message.startswith("model: found torch.nn.modules.linear.Linear without a known memory read, expected")
        assert "Memory of STM, MemoryReader of STCN" in message
        assert self.error(nn.DataParallel(Convolution(1))).startswith(f"model: found {__name__}.Convolution without")

    def test_another_class_of_the_same_name(self):
        class Memory(nn.Module):
            def forward(self, key, value):
                return key, value

        message = self.error(nn.Sequential(Memory()))
        assert (
            "(0 is not Memory of STM: found forward(key, value), expected forward(m_in, m_out, q_in, q_out))" in message
        )

    def test_a_subclass_with_a_read_of_its_own(self):
        class Local(STM.Memory):
            def forward(self, m_in, m_out, q_in, q_out):
                return super().forward(m_in[:, :, -1:], m_out[:, :, -1:], q_in, q_out)

        assert "(0 is not Memory of STM: Local has its own forward())" in self.error(nn.Sequential(Local()))

    def test_a_class_without_the_attributes(self):
        layer = AOT.MultiheadAttention()
        del layer.use_dis
        assert "(0 is not MultiheadAttention of AOT: no attribute use_dis)" in self.error(nn.Sequential(layer))

    def test_a_fork_with_another_formula(self):
        class Memory(STM.Memory):
            pass

        class Scaled(nn.Module):
            def forward(self, m_in, m_out, q_in, q_out):
                return torch.cat([dot_read(m_in, m_out, 2 * q_in), q_out], 1), None

        Scaled.__name__ = "Memory"
        message = self.error(nn.Sequential(Scaled()))
        assert re.search(r"\(0 is not Memory of STM: its read differs by 0\.\d+ from that one's formula\)", message)
        assert stm_fast.adapt(nn.Sequential(Memory(), Scaled())).replaced == (
            "0: Memory of STM -> stm_fast.memory_read",
        )

    @pytest.mark.parametrize("family", ["AOT", "DeAOT"])
    def test_a_fork_of_a_layer_with_weights(self, family):
        class Sharper(Heads):
            def weighted(self, Q, K, V):
                return super().weighted(2 * Q, K, V)

        published = AOT.MultiheadAttention if family == "AOT" else DeAOT.GatedPropagation
        fork = type(published.__name__, (Sharper,), dict(vars(published)))
        if family == "DeAOT":
            fork.__init__ = lambda self: (Sharper.__init__(self), setattr(self, "dw_conv", Convolution(2 * CV)))[0]
        else:
            fork.__init__ = Sharper.__init__
        message = self.error(nn.Sequential(fork()))
        assert re.search(rf"is not {published.__name__} of {family}.*: its read differs by 0\.\d+ from", message)

    def test_a_fork_that_takes_other_shapes(self):
        class Memory(nn.Module):
            def forward(self, m_in, m_out, q_in, q_out):
                raise RuntimeError(f"found {m_in.ndim} dimensions\nexpected 6")

        message = self.error(nn.Sequential(Memory()))
        assert "it cannot read an example (RuntimeError: found 3 dimensions)" in message

    def test_nothing_random_is_drawn(self):
        torch.manual_seed(0)
        expected = torch.rand(2)
        torch.manual_seed(0)
        stm_fast.adapt(nn.Sequential(STM.Memory()))
        assert torch.equal(torch.rand(2), expected)

    def test_layers_without_numbers_are_not_compared(self):
        with torch.device("meta"):
            model = nn.Sequential(AOT.MultiheadAttention())
        assert len(stm_fast.adapt(model).replaced) == 1

    def test_pytorchs_own_attention_is_another(self):
        assert " without a known memory read, expected" in self.error(nn.MultiheadAttention(4, 2))

    def test_wrong_arguments(self):
        with pytest.raises(TypeError, match=r"^model: found dict, expected a torch.nn.Module$"):
            stm_fast.adapt({})
        with pytest.raises(ValueError, match=r"^backend: found 'cuda', expected one of auto, triton, cpp, reference$"):
            stm_fast.adapt(network("STM")[0], backend="cuda")


class TestReport:
    def test_lists_every_layer(self, caplog):
        model = nn.ModuleDict({"one": STM.Memory(), "two": AOT.MultiheadAttention(), "other": nn.Linear(1, 1)})
        with caplog.at_level(logging.INFO, logger="stm_fast"):
            adapted = stm_fast.adapt(model)
        assert str(adapted).splitlines() == list(adapted.replaced) == caplog.messages
        assert adapted.replaced == (
            "one: Memory of STM -> stm_fast.memory_read",
            "two: MultiheadAttention of AOT -> stm_fast.memory_read",
        )
        assert repr(adapted) == f"Adapted(replaced={adapted.replaced})"

    def test_adapters_that_the_code_imports_already(self):
        model = nn.ModuleDict({"one": STMMemory(), "two": AOTLongTermAttention(8, 2)})
        assert str(stm_fast.adapt(model)) == "nothing left to replace: stm_fast reads already in one, two"

    def test_a_restored_part_leaves_the_rest(self):
        model = nn.ModuleDict({"one": STM.Memory()})
        stm_fast.adapt(model)
        model["two"] = STM.Memory()
        with stm_fast.adapt(model) as second:
            assert second.replaced == ("two: Memory of STM -> stm_fast.memory_read",)
        assert type(model["two"]) is STM.Memory
        assert type(model["one"]) is not STM.Memory
