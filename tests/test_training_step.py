"""The training step: the same predictions as frame by frame, and gradients that reach every parameter."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from stm_fast.data.clips import ClipBatch
from stm_fast.errors import InputError
from stm_fast.network import STM, Architecture, stm_lite0
from stm_fast.network.backbone import batch_norm_mode
from stm_fast.training.building import build_clip_loss
from stm_fast.training.config import Optimizer, SyntheticData, TrainingConfig
from stm_fast.training.learner import Learner
from stm_fast.training.losses import affinity_loss, shares, soft_iou_loss
from stm_fast.training.step import ClipLoss


@pytest.fixture
def model():
    torch.manual_seed(0)
    return STM("resnet18_half", key_dim=16, value_dim=16, decoder_dim=16)


@pytest.fixture(params=["resnet18_half", "efficientnet_lite0"])
def shared(request):
    torch.manual_seed(0)
    return STM(request.param, key_dim=16, value_dim=24, decoder_dim=16, shared_trunk=True)


@pytest.fixture
def clips():
    """Two clips of three frames, with two objects and with one."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(2, 3, 3, 32, 48, generator=generator)
    ids = torch.randint(0, 3, (2, 3, 32, 48), generator=generator)
    ids[1].clamp_(max=1)
    return frames, ids, [2, 1]


def one_by_one(model, frames, first_ids, objects):
    """What the published loop predicts, with the network's own calls."""
    masks = torch.stack([(first_ids == label).float() for label in range(1, objects + 1)])
    keys, values, predictions = [], [], []
    for time in range(1, len(frames)):
        key, value = model.memorize(frames[time - 1], masks)
        keys.append(key)
        values.append(value)
        logits = model.segment(frames[time], torch.stack(keys, 2), torch.stack(values, 2))
        predictions.append(logits)
        masks = logits.softmax(0)[1:]
    return torch.stack(predictions)


def test_predicts_the_same_as_the_network_frame_by_frame(model, clips):
    check_frame_by_frame(model, clips)


def test_a_shared_trunk_predicts_the_same_as_frame_by_frame(shared, clips):
    check_frame_by_frame(shared, clips)


def check_frame_by_frame(model, clips):
    frames, ids, objects = clips
    together = ClipLoss(model).predict(frames, ids[:, 0], objects)
    for clip, count in enumerate(objects):
        alone = one_by_one(model, frames[clip], ids[clip, 0], count)
        torch.testing.assert_close(together[clip], alone, atol=1e-4, rtol=1e-4)


def test_the_loss_sums_both_predictions_and_averages_the_clips(model, clips):
    frames, ids, objects = clips
    predicted = ClipLoss(model).predict(frames, ids[:, 0], objects)
    expected = (
        sum(
            F.cross_entropy(predicted[clip][time, None], ids[clip, time + 1, None])
            for clip in (0, 1)
            for time in (0, 1)
        )
        / 2
    )
    torch.testing.assert_close(ClipLoss(model)(frames, ids, objects), expected)


def test_the_gradient_reaches_every_parameter_and_goes_through_the_memory(model, clips):
    frames, ids, objects = clips
    gradients = {}
    for detached in (False, True):
        model.zero_grad()
        ClipLoss(model, iou_weight=0.5, detach_memory=detached)(frames, ids, objects).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        gradients[detached] = model.memory_encoder.conv1_mask.weight.grad.clone()
    assert not torch.equal(gradients[False], gradients[True])


def test_the_gradient_reaches_every_parameter_of_a_shared_trunk(shared, clips):
    frames, ids, objects = clips
    ClipLoss(shared)(frames, ids, objects).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in shared.parameters())


def test_soft_iou_of_a_right_a_wrong_and_an_absent_object():
    ids = torch.zeros(4, 4, dtype=torch.int64)
    ids[:2] = 1
    sure = 50.0
    right = torch.stack([(ids == label) * sure for label in (0, 1)])[None]  # [B, 1 + O, H, W]
    ids, one = ids[None], torch.tensor([1])
    assert float(soft_iou_loss(right, ids, one)) == pytest.approx(0, abs=1e-6)
    # all 8 pixels of the object missed, 8 others found: (0 + 1) / (16 + 1); 8 found of no object: (0 + 1) / (8 + 1)
    assert float(soft_iou_loss(right.flip(1), ids, one)) == pytest.approx(1 - 1 / 17)
    assert float(soft_iou_loss(right, torch.zeros_like(ids), one)) == pytest.approx(1 - 1 / 9)


def test_the_affinity_copies_masks_and_classes_weigh_equally():
    ids = torch.zeros(2, 1, 4, 8, dtype=torch.int64)  # one object's memory frame and the frame, two rows each
    ids[0, 0, :, 4:] = 1
    ids[1, 0, :, :4] = 1
    ids[1, 0, 0, 0] = 2
    seen = shares(ids.transpose(0, 1), torch.tensor([1]), 4)  # [1, 3, 2, 1, 2]
    assert seen[0, :, 0, 0].T.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert seen[0, :, 1, 0].T.tolist() == [[15 / 16, 1 / 16, 0], [0, 0, 1]]
    found, expected = seen[:, :, :1], seen[:, :, 1:]
    unlike = torch.tensor([0.0, 20.0]).reshape(1, 1, 1, 1, 2)
    sure = affinity_loss(torch.tensor([20.0, -20.0]).reshape(1, 1, 1, 2), unlike - 10, found, expected, "auto")
    # the object and the background are copied correctly; the memory holds no other object
    assert float(sure) == pytest.approx(-math.log(1e-4) / 16 / 3, rel=1e-5)
    even = affinity_loss(torch.zeros(1, 1, 1, 2), unlike, found, expected, "auto")
    assert float(even) == pytest.approx((math.log(2) * (15 / 16 + 1) - math.log(1e-4) / 16) / 3, rel=1e-5)


def test_the_affinity_loss_is_added_clip_by_clip(model, clips):
    frames, ids, objects = clips
    together = ClipLoss(model, affinity_weight=0.5)(frames, ids, objects)
    assert together > ClipLoss(model)(frames, ids, objects) + 0.1
    alone = [
        ClipLoss(model, affinity_weight=0.5)(frames[clip : clip + 1], ids[clip : clip + 1], objects[clip : clip + 1])
        for clip in (0, 1)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-4, rtol=1e-4)


def test_the_affinity_loss_trains_only_the_keys(model, clips):
    frames, ids, objects = clips
    gradients = []
    for weight in (0.0, 0.5):
        model.zero_grad()
        ClipLoss(model, affinity_weight=weight)(frames[:, :2], ids[:, :2], objects).backward()
        gradients.append([layer.weight.grad.clone() for layer in (model.query_key_value.key, model.decoder.predict)])
    assert not torch.allclose(gradients[0][0], gradients[1][0], atol=1e-4)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, i, o: (f[:, :1], i[:, :1], o), r"frames: found shape \[2, 1, 3, 32, 48\]"),
        (lambda f, i, o: (f[..., :40], i[..., :40], o), r"found \[32, 40\] pixels, expected multiples of 16"),
        (lambda f, i, o: (f, i[..., :32], o), r"first_ids: found shape \[2, 32, 32\]"),
        (lambda f, i, o: (f, i, [2, 0]), r"objects: found \[2, 0\]"),
    ],
)
def test_wrong_shapes_are_named(model, clips, change, message):
    with pytest.raises(ValueError, match=message):
        ClipLoss(model)(*change(*clips))


def test_batch_norm_is_fixed_by_default(model, clips):
    frames, ids, objects = clips
    statistics = model.query_encoder.bn1.running_mean.clone()
    model.train()
    ClipLoss(model)(frames, ids, objects)
    assert torch.equal(model.query_encoder.bn1.running_mean, statistics)

    batch_norm_mode(model, "batch")
    ClipLoss(model)(frames, ids, objects)
    moved = model.query_encoder.bn1.running_mean.clone()
    assert not torch.equal(moved, statistics)
    model.eval()
    ClipLoss(model)(frames, ids, objects)
    model.train()
    batch_norm_mode(model, "fixed")
    ClipLoss(model)(frames, ids, objects)
    assert torch.equal(model.query_encoder.bn1.running_mean, moved)
    with pytest.raises(ValueError, match="expected 'fixed' or 'batch'"):
        batch_norm_mode(model, "frozen")


@pytest.mark.parametrize("backbone", ["resnet18_half", "efficientnet_lite0"])
def test_a_trunk_learns_at_its_own_rate_after_its_frozen_stages(backbone):
    """A step of AdamW moves every weight by about its rate."""
    network = Architecture(backbone, 16, 24, 16, shared_trunk=True)
    config = TrainingConfig(
        data=(SyntheticData("synthetic"),),
        epochs=1,
        clips_per_epoch=1,
        network=network,
        frozen_stages=1,
        optimizer=Optimizer(name="adamw", lr=1e-2, trunk_lr=1e-4, batch=1),
    )
    clip_loss = build_clip_loss(config)
    before = {name: weight.clone() for name, weight in clip_loss.model.state_dict().items()}
    learner = Learner(config, clip_loss, Accelerator(cpu=True))
    frames = torch.randint(0, 256, (1, 3, 3, 32, 48), dtype=torch.uint8)
    ids = torch.randint(0, 3, (1, 3, 32, 48), dtype=torch.uint8)
    learner.step([ClipBatch(frames, ids, [2], ["clip"], [])], 0, 1)
    frozen = ("query_encoder.stem", "query_encoder.conv1", "query_encoder.stages.0", "query_encoder.layer1")
    for name, weight in clip_loss.model.named_parameters():
        moved = (weight - before[name]).abs().max()
        if name.startswith((*frozen, "query_encoder.bn1")):
            assert moved == 0, name
        elif weight.ndim > 1:
            rate = 1e-4 if name.startswith("query_encoder") else 1e-2
            assert 0.5 * rate < moved < 1.1 * rate, name


def test_batch_statistics_are_refused_without_batch_norm():
    network = Architecture("efficientnet_lite0", 16, 24, 16, shared_trunk=True)
    config = TrainingConfig((SyntheticData("synthetic"),), 1, 1, network, batch_norm="batch")
    with pytest.raises(InputError, match="batch_norm: found batch, but efficientnet_lite0 has it folded in"):
        build_clip_loss(config)


def test_imagenet_weights_come_from_the_wheel_of_the_trunk():
    network = Architecture("efficientnet_lite0", 16, 24, 16, shared_trunk=True)
    config = TrainingConfig((SyntheticData("synthetic"),), 1, 1, network, backbone_weights="imagenet")
    found = build_clip_loss(config).model.query_encoder.state_dict()
    expected = stm_lite0(weights_backbone="efficientnet-lite0").query_encoder.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
