"""The network: it equals the published one, and each of its parts keeps its contract."""

import itertools
import math
from typing import get_args

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.testing import assert_close

from stm_fast import network
from stm_fast.choices import Arch
from stm_fast.network import STM, ObjectBatch, stm_resnet18, stm_resnet50
from stm_fast.network.architecture import NETWORKS
from stm_fast.network.backbone import Backbone
from stm_fast.network.encoders import BACKBONES
from stm_fast.network.key_value import positions
from stm_fast.network.outline import outline
from stm_fast.network.padding import pad_to_multiple, unpad
from stm_fast.network.pretrained import PRETRAINED


def small_stm() -> STM:
    return stm_resnet18(key_dim=8, value_dim=16, decoder_dim=8).eval()


def published_loop(model: STM, frames: Tensor, masks: Tensor, every: int) -> Tensor:
    """The published inference: every N-th frame stays in memory, the previous frame for one step."""
    kept_keys, kept_values, logits = [], [], []
    for t in range(1, len(frames)):
        key, value = model.memorize(frames[t - 1], masks)
        keys, values = [*kept_keys, key], [*kept_values, value]
        logits.append(model.segment(frames[t], torch.stack(keys, dim=2), torch.stack(values, dim=2)))
        masks = logits[-1].softmax(dim=0)[1:]
        if (t - 1) % every == 0:
            kept_keys, kept_values = keys, values
    return torch.stack(logits)


@pytest.mark.slow
def test_reproduces_the_published_network(golden) -> None:
    with torch.no_grad():
        logits = published_loop(golden.model, golden.frames, golden.planes, golden.every)
    error = ((logits - golden.logits).square().mean() / golden.logits.square().mean()).sqrt().item()
    print(f"relative error {error:.2e}")
    assert error < 1e-3


@pytest.mark.slow
def test_has_the_published_size() -> None:
    model = stm_resnet50()
    assert sum(tensor.numel() for tensor in model.parameters()) == 38_925_570
    assert round(sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6, 2) == 38.99


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_trunk_and_its_gradients_match_torchvision(name: str) -> None:
    theirs = torchvision.models.get_model(name).eval()
    state = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith(("layer4", "fc"))}
    ours = Backbone(name)
    ours.load_state_dict(state | {key: getattr(ours, key) for key in ("mean", "std")})
    frame = torch.randn(1, 3, 48, 32)
    pooled = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(frame))))
    expected = theirs.layer3(theirs.layer2(theirs.layer1(pooled)))
    found, *_ = ours.stages(ours.conv1(frame))
    assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[key], rtol=0, atol=0)


def test_batch_norm_never_leaves_eval_mode() -> None:
    model = small_stm().train()
    model.query_encoder.layer1.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert model.training
    assert not any(norm.training for norm in norms)
    assert all(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    frame = torch.rand(3, 32, 32)
    trained = model.encode_query(frame).key
    assert torch.equal(trained, model.eval().encode_query(frame).key)


def test_everything_is_trainable() -> None:
    model = small_stm().train()
    key, value = model.memorize(torch.rand(3, 32, 48), torch.rand(2, 32, 48))
    logits = model(torch.rand(3, 32, 48), key[:, :, None], value[:, :, None])
    logits[1:].sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not without


@pytest.mark.parametrize("build", [stm_resnet18, pytest.param(stm_resnet50, marks=pytest.mark.slow)])
def test_untrained_weights_are_seeded_and_neither_dead_nor_saturated(build: type[STM]) -> None:
    torch.manual_seed(3)
    model = build()
    torch.manual_seed(3)
    again = build()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        key, value = model.memorize(torch.rand(3, 48, 64), torch.rand(2, 48, 64))
        features = model.encode_query(torch.rand(3, 48, 64))
        scores = features.key.flatten(2).mT @ key.flatten(2) / math.sqrt(model.key_dim)
        logits = model.decode(value, features)
    assert 0.1 < scores.std() < 10
    assert logits.isfinite().all()
    assert logits.flatten(1).std(dim=1).min() > 1e-3
    assert logits.abs().max() < 10


def test_unit_keys_have_one_length_and_match_at_initialization() -> None:
    torch.manual_seed(0)
    model = STM("resnet18_half", key_dim=16, value_dim=16, decoder_dim=8, unit_keys=True).eval()
    frame = torch.rand(3, 64, 96)
    with torch.no_grad():
        memory_key, _ = model.memorize(frame, torch.zeros(1, 64, 96))
        query_key = model.encode_query(frame).key
        for key in (memory_key, query_key):
            torch.testing.assert_close(key.norm(dim=1), model.query_key_value.key_length.expand(1, 4, 6))
        scores = query_key.flatten(2).mT @ memory_key.flatten(2) / math.sqrt(16)  # [1, M, N]
    torch.testing.assert_close(scores[0].diagonal(), torch.full((24,), 20.0), atol=1e-3, rtol=0)
    assert torch.equal(scores[0].argmax(1), torch.arange(24))


def test_position_channels_make_scores_fall_with_distance() -> None:
    torch.manual_seed(0)
    model = STM("resnet18_half", key_dim=16, value_dim=16, decoder_dim=8, unit_keys=True, position_waves=3).eval()
    assert model.key_dim == 16 + 4 * 3
    with torch.no_grad():
        memory_key, _ = model.memorize(torch.rand(3, 64, 96), torch.zeros(1, 64, 96))
        query_key = model.encode_query(torch.rand(3, 64, 96)).key
        assert query_key.shape == memory_key.shape == (1, 28, 4, 6)
        q, k = (key[0, 16:].double() for key in (query_key, memory_key))  # [12, 4, 6]
        scores = torch.einsum("cij,cuv->ijuv", q, k) / math.sqrt(28)
    for i, j, u, v in itertools.product(range(4), range(6), range(4), range(6)):
        turns = [(wave * (i - u) / 16, wave * (j - v) / 16) for wave in (1, 2, 4)]  # waves of 16, 8 and 4 positions
        expected = sum(0.5 * (math.cos(2 * math.pi * y) + math.cos(2 * math.pi * x)) for y, x in turns)
        assert scores[i, j, u, v] == pytest.approx(expected, abs=1e-5)


def test_positions_of_a_wide_frame_are_exact_in_bfloat16() -> None:
    amplitudes = torch.ones(4, dtype=torch.bfloat16)
    assert torch.equal(positions(68, 120, amplitudes), positions(68, 120, amplitudes.float()))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (1, 16), (72, 100)])
def test_shapes_for_different_frame_sizes(height: int, width: int) -> None:
    model = small_stm()
    h, w = math.ceil(height / 16), math.ceil(width / 16)
    with torch.no_grad():
        key, value = model.memorize(torch.rand(3, height, width), torch.rand(2, height, width))
        features = model.encode_query(torch.rand(1, 3, height, width))
        logits = model.decode(value, features)
    assert key.shape == (2, 8, h, w)
    assert value.shape == (2, 16, h, w)
    assert features.key.shape == (1, 8, h, w)
    assert features.value.shape == (1, 16, h, w)
    assert logits.shape == (3, height, width)
    assert logits.dtype == torch.float32


def test_no_object_and_one_object() -> None:
    model = small_stm()
    features = model.encode_query(torch.rand(3, 32, 32))
    for objects in (0, 1):
        key, value = model.memorize(torch.rand(3, 32, 32), torch.rand(objects, 32, 32))
        assert key.shape == (objects, 8, 2, 2)
        assert model.decode(value, features).shape == (1 + objects, 32, 32)


def test_objects_are_decoded_as_if_alone() -> None:
    model = small_stm()
    features = model.encode_query(torch.rand(3, 40, 56))
    read = torch.randn(3, 16, 3, 4)
    with torch.no_grad():
        together = model.decode(read, features)
        alone = torch.stack([model.decode(read[o : o + 1], features)[1] for o in range(3)])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    background = (1 - alone.sigmoid()).prod(dim=0)
    torch.testing.assert_close(together[0].sigmoid(), background, rtol=1e-4, atol=1e-5)


def test_each_object_sees_the_union_of_the_others() -> None:
    model = small_stm()
    frame, masks = torch.rand(3, 32, 32), torch.rand(3, 32, 32)
    with torch.no_grad():
        key, value = model.memorize(frame, masks)
        for o in range(3):
            others = masks[[i for i in range(3) if i != o]].sum(dim=0).clamp(0, 1)
            r4 = model.memory_encoder(frame[None], masks[o].view(1, 1, 32, 32), others.view(1, 1, 32, 32))
            for found, expected in zip((key, value), model.memory_key_value(r4), strict=True):
                torch.testing.assert_close(found[o : o + 1], expected)


def test_segment_is_encode_read_decode() -> None:
    model = small_stm()
    frame, keys, values = torch.rand(3, 32, 48), torch.randn(2, 8, 3, 2, 3), torch.randn(2, 16, 3, 2, 3)
    with torch.no_grad():
        features = model.encode_query(frame)
        scores = features.key.flatten(2).mT @ keys.flatten(2) / math.sqrt(8)  # [O, hw, T h w]
        read = values.flatten(2) @ scores.softmax(dim=2).mT  # [O, Cv, hw]
        torch.testing.assert_close(
            model.segment(frame, keys, values), model.decode(read.unflatten(2, (2, 3)), features), rtol=1e-4, atol=1e-5
        )


def test_frames_are_encoded_in_batches() -> None:
    model = small_stm()
    frames = torch.rand(2, 3, 30, 40)
    with torch.no_grad():
        batch = model.encode_query(frames)
        torch.testing.assert_close(batch.key[1:], model.encode_query(frames[1]).key)


@torch.no_grad()
def test_a_batch_gives_the_same_as_each_frame_alone() -> None:
    """With a different number of objects in each frame."""
    model, counts = small_stm(), [2, 0, 1]
    frames, masks, reads = torch.rand(3, 3, 30, 40), torch.rand(3, 30, 40) / 2, torch.randn(3, 16, 2, 3)
    objects = ObjectBatch.of(counts, frames.device)
    made = model.memorize(frames, masks, objects=objects)
    logits = model.decode(reads, model.encode_query(frames), objects)
    assert logits.shape == (3, 3, 30, 40)
    first = 0
    for index, count in enumerate(counts):
        own = slice(first, first + count)
        alone = model.memorize(frames[index], masks[own])
        for found, expected in zip(made, alone, strict=True):
            assert_close(found[own], expected, rtol=1e-4, atol=1e-5)
        expected = model.decode(reads[own], model.encode_query(frames[index]))
        assert_close(logits[index, : 1 + count], expected, rtol=1e-4, atol=1e-5)
        assert (logits[index, 1 + count :] == -math.inf).all()
        first += count


@pytest.mark.parametrize("name", NETWORKS)
def test_every_named_network_has_a_builder(name: str) -> None:
    assert outline(NETWORKS[name]).architecture == NETWORKS[name]
    assert set(get_args(Arch)) <= NETWORKS.keys()
    assert callable(getattr(network, f"stm_{name}"))


def test_imagenet_weights_of_the_backbones_exist() -> None:
    named = [layout.imagenet for layout in BACKBONES.values() if layout.imagenet is not None]
    assert len(named) == 4
    for name in named:
        assert name in PRETRAINED or torchvision.models.get_weight(name).url


def test_a_bfloat16_network_takes_float32_frames_and_gives_float32_logits() -> None:
    model = small_stm().bfloat16()
    with torch.no_grad():
        key, value = model.memorize(torch.rand(3, 32, 32), torch.rand(2, 32, 32))
        logits = model.segment(torch.rand(3, 32, 32), key[:, :, None], value[:, :, None])
    assert key.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(16, 32), (15, 17), (1, 1), (31, 16), (72, 100)])
def test_unpad_undoes_padding(height: int, width: int) -> None:
    x = torch.rand(2, height, width)
    padded, pads = pad_to_multiple(x, 16)
    assert padded.shape == (2, 16 * math.ceil(height / 16), 16 * math.ceil(width / 16))
    assert padded.sum().item() == pytest.approx(x.sum().item())
    assert torch.equal(unpad(padded, pads), x)


def test_the_odd_pixel_of_padding_is_at_the_right_and_the_bottom() -> None:
    assert pad_to_multiple(torch.rand(13, 15), 16)[1] == (0, 1, 1, 2)


def test_wrong_arguments_are_named() -> None:
    model = small_stm()
    features = model.encode_query(torch.rand(3, 32, 32))
    with pytest.raises(TypeError, match=r"frame: found torch.uint8"):
        model.encode_query(torch.zeros(3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"frame: found shape \[32, 32, 3\]"):
        model.encode_query(torch.rand(32, 32, 3))
    with pytest.raises(ValueError, match=r"masks: found shape \[32, 32\]"):
        model.memorize(torch.rand(3, 32, 32), torch.rand(32, 32))
    with pytest.raises(ValueError, match="of the same size"):
        model.memorize(torch.rand(3, 32, 32), torch.rand(1, 64, 32))
    with pytest.raises(ValueError, match=r"read: found shape \[1, 16, 3, 2\]"):
        model.decode(torch.rand(1, 16, 3, 2), features)
    with pytest.raises(ValueError, match=r"keys and values: found shapes \[1, 8, 2, 2\]"):
        model.segment(torch.rand(3, 32, 32), torch.rand(1, 8, 2, 2), torch.rand(1, 16, 2, 2))
    with pytest.raises(ValueError, match="features of 2 frames"):
        model.decode(torch.rand(2, 16, 2, 2), model.encode_query(torch.rand(2, 3, 32, 32)))
    objects = ObjectBatch.of([1, 1], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"found, padded, \[1, 3, 32, 32\].* expected \[2, 3, H, W\]"):
        model.memorize(torch.rand(3, 32, 32), torch.rand(2, 32, 32), objects=objects)
    with pytest.raises(ValueError, match="features of 1 frames, expected those of 2"):
        model.decode(torch.rand(2, 16, 2, 2), features, objects)
    with pytest.raises(ValueError, match="backbone: found 'resnet7'"):
        STM("resnet7")
