"""Probabilities and labels in one pass, compared with the chain of PyTorch operators that they replace, in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import label
from stm_fast.network import STM
from stm_fast.network.aggregation import EPSILON
from stm_fast.network.deploy import for_inference
from stm_fast.network.deploy.deployment import OnePassSTM
from stm_fast.network.padding import unpad
from stm_fast.ops import cpp_ops, probabilities

object_probabilities = partial(probabilities.object_probabilities, epsilon=EPSILON)
REASONS = probabilities.absent_reasons()
needs_operators = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))

# left, right, top, bottom
NO_PADS = (0, 0, 0, 0)
PADS = (5, 6, 3, 2)


def chain(logits: Tensor, pads: tuple[int, int, int, int]) -> Tensor:
    """The operators one by one, in float64."""
    resized = F.interpolate(logits.double(), scale_factor=4, mode="bilinear", align_corners=False)
    probability = resized.softmax(1)[:, 1] if logits.shape[1] == 2 else resized[:, 0].sigmoid()
    probability = unpad(probability, pads)
    background = (1 - probability).prod(0, keepdim=True)
    return torch.logit(torch.cat([background, probability]), eps=EPSILON).softmax(0)


def check(logits: Tensor, pads: tuple[int, int, int, int] = PADS) -> None:
    found, expected = object_probabilities(logits, pads), chain(logits, pads)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(0), torch.ones(found.shape[1:]), rtol=0, atol=1e-6)


def test_an_available_extension_has_the_operators():
    assert probabilities.absent_reasons() == cpp_ops.absent_reasons()


@needs_operators
@pytest.mark.parametrize("size", [(4, 4), (9, 11), (17, 33)], ids=str)
@pytest.mark.parametrize("dtype", probabilities.DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("objects", [1, 2, 5])
def test_matches_the_chain_of_operators(objects, channels, dtype, size, poisoned_memory):
    check((torch.randn(objects, channels, *size) * 4).to(dtype))


@needs_operators
@pytest.mark.parametrize("pads", [NO_PADS, (1, 0, 0, 1), (0, 27, 31, 0), (13, 14, 15, 16)], ids=str)
def test_any_crop(pads, poisoned_memory):
    check(torch.randn(2, 2, 8, 7) * 4, pads)


@needs_operators
def test_one_pixel():
    check(torch.randn(3, 2, 1, 1), NO_PADS)


@needs_operators
def test_any_layout():
    logits = torch.randn(3, 2, 9, 11)
    expected = object_probabilities(logits, PADS)
    assert torch.equal(object_probabilities(logits.to(memory_format=torch.channels_last), PADS), expected)
    assert torch.equal(object_probabilities(logits.mT.contiguous().mT, PADS), expected)
    assert torch.equal(object_probabilities(logits.repeat_interleave(2, 3)[..., ::2], PADS), expected)
    check(logits[:1].expand(3, -1, -1, -1))


@needs_operators
def test_one_channel_is_the_difference_of_two():
    logits = torch.randn(3, 2, 9, 11)
    assert torch.equal(object_probabilities(logits[:, 1:] - logits[:, :1], PADS), object_probabilities(logits, PADS))


@needs_operators
@pytest.mark.parametrize("scale", [20, 100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("objects", [1, 2, 5])
def test_saturated_logits(objects, channels, scale):
    """Pixels that several objects claim, that none claims, and in between, within the bounds of soft aggregation."""
    check(scale * torch.randint(-1, 2, (objects, channels, 12, 12)).float())


@needs_operators
def test_no_object_and_every_object():
    absent = object_probabilities(torch.full((3, 1, 2, 2), -100.0), NO_PADS)
    torch.testing.assert_close(absent[0], torch.ones(8, 8))
    assert (absent[1:] > 0).all()
    everywhere = object_probabilities(torch.full((4, 1, 2, 2), 100.0), NO_PADS)
    torch.testing.assert_close(everywhere[1:], torch.full((4, 8, 8), 0.25))


@needs_operators
def test_nan_spreads_only_to_pixels_it_contributes_to():
    logits = torch.randn(2, 2, 6, 6)
    logits[1, 0, 2, 3] = torch.nan
    found, expected = object_probabilities(logits, NO_PADS), chain(logits, NO_PADS)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@needs_operators
def test_threads_change_nothing():
    logits = torch.randn(3, 2, 40, 60)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            prob = object_probabilities(logits, PADS)
            found.append((prob, label(prob, [1, 2, 3])))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@needs_operators
def test_unsupported_inputs_are_refused():
    with pytest.raises(RuntimeError, match="outside of the resized logits"):
        object_probabilities(torch.randn(1, 2, 4, 4), (9, 9, 0, 0))
    with pytest.raises(RuntimeError, match="expected 1 or 2"):
        object_probabilities(torch.randn(1, 3, 4, 4), NO_PADS)
    with pytest.raises(RuntimeError, match="logits: there is no kernel for its dtype"):
        object_probabilities(torch.randn(1, 2, 4, 4).double(), NO_PADS)
    with pytest.raises(RuntimeError, match="one for each channel"):
        probabilities.most_likely(torch.randn(2, 4, 4), torch.zeros(3, dtype=torch.uint8))


@pytest.mark.slow
@needs_operators
def test_operators_are_registered_correctly():
    ops = torch.ops.stm_fast
    torch.library.opcheck(ops.object_probabilities, (torch.randn(2, 2, 5, 6), 1, 2, 17, 19, EPSILON))
    torch.library.opcheck(ops.most_likely, (torch.rand(3, 5, 6), torch.tensor([0, 4, 9], dtype=torch.uint8)))


@pytest.mark.parametrize("objects", [0, 1, 3, 20])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (30, 41)], ids=str)
def test_labels_are_the_argmax(objects, size, poisoned_memory):
    ids = [255 - 3 * index for index in range(objects)]
    table = torch.tensor([0, *ids], dtype=torch.uint8)
    for prob in (torch.rand(1 + objects, *size), torch.randint(0, 3, (1 + objects, *size)).float()):
        prob[torch.rand(prob.shape) < 0.05] = torch.nan
        found = label(prob, ids)
        assert found.dtype == torch.uint8
        assert torch.equal(found, table[prob.argmax(0)])  # the first of equal values, or the first NaN
        assert torch.equal(label(prob.permute(1, 2, 0).contiguous().permute(2, 0, 1), ids), found)


@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@torch.inference_mode()
def test_a_prepared_network_gives_the_probabilities_of_its_logits(dtype, objects):
    model = STM("resnet18", key_dim=16, value_dim=32, decoder_dim=16).eval()
    read = torch.randn(objects, 32, 3, 4)
    prepared = for_inference(model, dtype=dtype)
    assert isinstance(prepared, OnePassSTM) == (dtype != torch.float64 and not REASONS)
    features = prepared.encode_query(torch.rand(3, 45, 61))
    found = prepared.probabilities(read.to(dtype), features)
    expected = prepared.decode(read.to(dtype), features).softmax(0)
    assert found.shape == (1 + objects, 45, 61)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5  # resized logits are rounded to bfloat16
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    features = model.encode_query(torch.rand(3, 45, 61))
    assert torch.equal(model.probabilities(read, features), model.decode(read, features).softmax(0))
    for network in (prepared, model):
        with pytest.raises(ValueError, match="read: found shape"):
            network.probabilities(read[:, :, :2], features)


@needs_operators
@torch.inference_mode()
def test_the_engine_uses_the_single_pass_of_a_prepared_network(monkeypatch):
    model = for_inference(STM("resnet18", key_dim=16, value_dim=32, decoder_dim=16).eval())
    monkeypatch.setattr(model, "decode", None)  # must not be called
    mask = torch.zeros(40, 52, dtype=torch.uint8)
    mask[10:30, 20:40] = 3
    segmenter = VideoSegmenter(model)
    segmenter.step(torch.rand(3, 40, 52), mask)
    prob = segmenter.step(torch.rand(3, 40, 52))
    torch.testing.assert_close(prob.sum(0), torch.ones(40, 52))
