"""The gated propagation of DeAOT and PAOT against its formula: attention, gate, depth-wise convolution, projection."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from family_formulas import assert_near, randn
from stm_fast.ops.adapters import DeAOTGatedPropagation

SIZE = H, W = 4, 5
M, N, B = H * W, 3 * H * W, 2
D_QK, D_VU = 12, 8


def layer(heads=1, **chosen):
    return DeAOTGatedPropagation(D_QK, D_VU, heads, **chosen).double().eval()


def inputs(use_linear, rows=N):
    """Q, K, V, U: without projections, V and U have the expanded width already."""
    width = D_VU if use_linear else 2 * D_VU
    return randn(M, B, D_QK), randn(rows, B, D_QK), randn(M if use_linear else rows, B, width), randn(M, B, width)


def swish(x):
    return x / (1 + torch.exp(-x))


def projected_halves(x, first, second, heads):
    """Each head holds its share of the first half's projection, then its share of the second's."""
    one, two = first(x[..., : D_VU // 2]), second(x[..., D_VU // 2 :])
    width = one.shape[-1] // heads
    parts = [part[..., h * width : (h + 1) * width] for h in range(heads) for part in (one, two)]
    return swish(torch.cat(parts, dim=-1))


def formula(layer, Q, K, V, U, heads=1, factor=1.0, count=None, use_dis=False):
    if layer.use_linear:
        Q = K = layer.linear_QK(Q)
        V = projected_halves(V, layer.linear_V1, layer.linear_V2, heads)
        U = projected_halves(U, layer.linear_U1, layer.linear_U2, heads)
    reads = []
    for q, k, v in zip(Q.chunk(heads, -1), K.chunk(heads, -1), V.chunk(heads, -1), strict=True):
        score = factor * torch.einsum("mbc,nbc->bmn", q, k) / math.sqrt(q.shape[-1])
        if use_dis:
            score = 2 * score - k.square().sum(-1).T[:, None]
        if count:
            score = score.masked_fill(score < score.topk(count).values[..., -1:], -math.inf)
        weight = score.exp() / score.exp().sum(-1, keepdim=True)
        reads.append(torch.einsum("bmn,nbv->mbv", weight, v))
    gated = torch.cat(reads, dim=-1) * U  # [M, B, expanded]
    plane = gated.reshape(H, W, B, -1).permute(2, 3, 0, 1)
    conv = F.conv2d(plane, layer.dw_conv.conv.weight, padding=2, groups=plane.shape[1])
    return layer.projection(conv.permute(2, 3, 0, 1).reshape(M, B, -1))


@pytest.mark.parametrize("use_linear", [True, False])
@pytest.mark.parametrize("use_dis", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
def test_reads_as_published(heads, use_dis, use_linear):
    gated, tensors = layer(heads, use_linear=use_linear, use_dis=use_dis), inputs(use_linear)
    out, attention = gated(*tensors, SIZE)
    assert attention is None
    assert_near(out, formula(gated, *tensors, heads=heads, use_dis=use_dis))


@pytest.mark.parametrize(("top_k", "count"), [(7, 7), (0.25, 15), (-0.5, 10), (-1, None), (0, None), (100, None)])
def test_top_k(top_k, count):
    gated, tensors = layer(use_linear=False, top_k=top_k), inputs(False)
    assert_near(gated(*tensors, SIZE)[0], formula(gated, *tensors, count=count))


def test_a_long_memory_sharpens_the_scores():
    gated, tensors = layer(use_linear=False, max_mem_len_ratio=2), inputs(False)
    assert_near(gated(*tensors, SIZE)[0], formula(gated, *tensors, factor=math.log(3) / math.log(2)))


def test_training_reads_everything_and_drops_channels():
    gated, tensors = layer(use_linear=False, top_k=7, max_mem_len_ratio=2).train(), inputs(False)
    gated.dw_conv.dropout.p = 0.0
    assert_near(gated(*tensors, SIZE)[0], formula(gated, *tensors))
    gated.dw_conv.dropout.p = 0.5
    assert not torch.allclose(gated(*tensors, SIZE)[0], formula(gated, *tensors))


@pytest.mark.parametrize("use_linear", [True, False])
def test_gradients(use_linear):
    gated = layer(2, use_linear=use_linear)
    tensors = [tensor.requires_grad_() for tensor in inputs(use_linear)]
    used = [tensor for name, tensor in zip("QKVU", tensors, strict=True) if name != "K" or not use_linear]
    found = torch.autograd.grad(gated(*tensors, SIZE)[0].square().sum(), used)
    expected = torch.autograd.grad(formula(gated, *tensors, heads=2).square().sum(), used)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other)


def test_state_dict_has_the_published_names():
    linear = [
        f"{name}.{kind}"
        for name in ("linear_QK", "linear_V1", "linear_V2", "linear_U1", "linear_U2")
        for kind in ("weight", "bias")
    ]
    shared = {"dw_conv.conv.weight", "projection.weight", "projection.bias"}
    assert set(layer().state_dict()) == shared.union(linear)
    assert set(layer(use_linear=False).state_dict()) == shared
    assert isinstance(layer().dw_conv.conv, nn.Conv2d)


def test_refusals():
    with pytest.raises(ValueError, match=r"dropout: found 0\.1, expected 0"):
        layer(dropout=0.1)
    with pytest.raises(ValueError, match="top_k: found nan, expected a number"):
        layer(top_k=math.nan)
    with pytest.raises(ValueError, match="size_2d: found 3x5, expected the 20 positions of Q"):
        layer(use_linear=False)(*inputs(False), (3, 5))
    with pytest.raises(ValueError, match=r"U: found shape \(20, 16\), expected 3 dimensions"):
        layer(use_linear=False)(*inputs(False)[:3], randn(20, 16), SIZE)
