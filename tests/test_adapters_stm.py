"""The reads of STM's training forks and of Mask-Propagation's training, against STM's formula (section 3.2)."""

import math

import pytest
import torch

from family_formulas import assert_near, randn
from stm_fast.ops.adapters import MaskPropagationMemoryReader, STMMemory

O, CK, CV, T, H, W = 2, 8, 6, 3, 4, 5


def read(key, value, query):
    """Rows [O, N, Ck] and [O, N, Cv], query [O, Ck, H, W]: [O, Cv, H, W]."""
    score = torch.einsum("onc,ochw->onhw", key, query) / math.sqrt(key.shape[2])
    weight = score.exp() / score.exp().sum(1, keepdim=True)
    return torch.einsum("onhw,onv->ovhw", weight, value)


def inputs(layout):
    """Memory keys and values in the layout, query keys and values, and the read that is expected."""
    key, value, query = randn(O, T * H * W, CK), randn(O, T * H * W, CV), randn(O, CK, H, W)
    expected = read(key, value, query)
    if layout == "frames":
        key, value = (rows.mT.unflatten(2, (T, H, W)) for rows in (key, value))
    return [key, value, query, randn(O, CV, H, W)], expected


@pytest.mark.parametrize("layout", ["frames", "rows"])
def test_reads_frames_and_rows(layout):
    tensors, expected = inputs(layout)
    found, affinity = STMMemory()(*tensors)
    assert affinity is None
    assert_near(found, torch.cat([expected, tensors[3]], dim=1))


def test_takes_the_published_names():
    tensors, expected = inputs("rows")
    found, _ = STMMemory()(**dict(zip(("m_in", "m_out", "q_in", "q_out"), tensors, strict=True)))
    assert_near(found[:, :CV], expected)


@pytest.mark.parametrize("layout", ["frames", "rows"])
def test_gradients(layout):
    tensors, _ = inputs(layout)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *tensors: STMMemory()(*tensors)[0], tensors)


def test_keys_and_values_in_different_layouts():
    (key, _, query, query_value), _ = inputs("rows")
    value = randn(O, CV, T, H, W)
    with pytest.raises(ValueError, match=r"m_in, m_out: found shapes .*, expected the same number of dimensions"):
        STMMemory()(key, value, query, query_value)


def test_mask_propagation_in_training():
    (mk, mv, qk, _), expected = inputs("frames")
    qv = randn(O, 7, H, W)
    assert_near(MaskPropagationMemoryReader()(mk=mk, mv=mv, qk=qk, qv=qv), torch.cat([expected, qv], dim=1))


@pytest.mark.parametrize("reader", [STMMemory, MaskPropagationMemoryReader])
def test_holds_no_weights_and_passes_its_backend_on(reader):
    assert not reader().state_dict()
    with pytest.raises(ValueError, match="backend: found 'none'"):
        reader(backend="none")(*inputs("frames")[0])
