"""Training runs, and pictures to train on, small enough for a test."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stm_fast.data.augmentation import Augmentation
from stm_fast.network import Architecture
from stm_fast.training.building import build_clip_loss, build_clips
from stm_fast.training.checkpoint import read_state
from stm_fast.training.config import Clips, Log, Optimizer, Schedule, SyntheticData, TrainingConfig
from stm_fast.training.config_file import from_plain
from stm_fast.training.log import read_log
from stm_fast.training.trainer import Trainer
from stm_fast.video import write_mask

SMALL = {
    "network": {"backbone": "resnet18_half", "key_dim": 8, "value_dim": 8, "decoder_dim": 8},
    "batch_norm": "batch",
    "data": [{"kind": "synthetic", "length": 3, "height": 48, "width": 48}],
    "clips": {"size": [32, 32], "max_objects": 2},
    "optimizer": {"lr": 1e-3, "batch": 2},
    "schedule": {"name": "poly", "warmup": 2},
    "epochs": 2,
    "clips_per_epoch": 5,  # steps do not divide an epoch evenly
    "log": {"every": 2, "pictures": None, "checkpoint": 2},
}
# the same, for tests on machines without pydantic
SMALL_CONFIG = TrainingConfig(
    data=(SyntheticData("synthetic", length=3, height=48, width=48),),
    epochs=2,
    clips_per_epoch=5,
    network=Architecture("resnet18_half", key_dim=8, value_dim=8, decoder_dim=8),
    batch_norm="batch",
    clips=Clips(size=(32, 32), max_objects=2),
    optimizer=Optimizer(lr=1e-3, batch=2),
    schedule=Schedule("poly", warmup=2),
    log=Log(every=2, pictures=None, checkpoint=2),
)
_SOFT = 3  # pixels: the width of soft edges in enlarged pictures
SAME_COLORS = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grey": 0.0}
STILL = Augmentation(
    **SAME_COLORS,
    still_rotation=0,
    still_shear=0,
    still_zoom=0,
    still_translation=0,
    warp=0,
    paste=0,
    video_rotation=0,
    video_shear=0,
    video_zoom=0,
    video_translation=0,
    crop_area=(1, 1),
    crop_stretch=1,
    flip=0,
    reverse=0,
)
WILD = Augmentation(**SAME_COLORS, warp=1.0, paste=1.0, video_paste=1.0, still_rotation=40)


def make_trainer(folder: Path, resume: bool = False, skip_corrupt: bool = False, **changes) -> Trainer:
    config = from_plain(SMALL | changes, "test")
    return Trainer(config, build_clip_loss(config), build_clips(config, skip_corrupt), folder, resume=resume)


def stop_after(calls: int):
    """A `stop` that is true from the given call on."""
    left = iter([False] * (calls - 1))
    return lambda: next(left, True)


def curve(folder: Path) -> list[dict]:
    """The log without timings."""
    return [
        {name: value for name, value in line.items() if name != "clips_per_second"}
        for line in read_log(folder / "log.jsonl")
    ]


def tensors(folder: Path) -> dict:
    """Every tensor of a run's checkpoint by a dotted name."""
    return dict(_tensors(read_state(folder / "checkpoint.pt"), ""))


def _tensors(content, key):
    if isinstance(content, dict):
        for name, inner in content.items():
            yield from _tensors(inner, f"{key}.{name}")
    elif hasattr(content, "shape"):
        yield key, content


def assert_same_up_to_rounding(found: Path, expected: Path) -> None:
    """Runs that log every step. Adam hides the scale of a gradient, so losses and norms are compared as well."""
    for ours, theirs in zip(curve(found), curve(expected), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    ours, theirs = tensors(found), tensors(expected)
    for name in theirs:
        if name.startswith(".model."):
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


def color_of(ids):
    """An RGB color for each id, far apart for small ids: [..., 3]."""
    number = np.asarray(ids, int)[..., None]
    return (number * [37, 91, 53] % 256).astype(np.uint8)


def painted(height, width, boxes):
    """Ids [H, W] with boxes {id: (top, left, bottom, right)}."""
    ids = np.zeros((height, width), np.uint8)
    for label, (top, left, bottom, right) in boxes.items():
        ids[top:bottom, left:right] = label
    return ids


def write_pair(root, name, ids, suffix="png"):
    """An image whose colors identify the ids, and its mask."""
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(color_of(ids)).save(root / "JPEGImages" / f"{name}.{suffix}", quality=100, subsampling=0)
    write_mask(root / "Annotations" / f"{name}.png", ids)


def write_stills(root):
    write_pair(root, "wide", painted(60, 100, {3: (5, 5, 40, 40), 7: (20, 50, 55, 90)}))
    write_pair(root, "tall", painted(90, 50, {1: (30, 10, 70, 40)}))
    return root


def write_video(root):
    """One sequence of 30 frames: object 9 walks to the right, object 4 appears in frame 20."""
    for time in range(30):
        boxes = {9: (10, 2 * time, 40, 2 * time + 25)} | ({4: (45, 60, 58, 90)} if time >= 20 else {})
        write_pair(root, f"walk/{time:05d}", painted(60, 100, boxes))
    return root


def inner(ids):
    """Pixels [T, H, W] whose neighbors up to `_SOFT` pixels away in the frame all have the same id."""
    around = torch.nn.functional.pad(ids.float()[:, None], (_SOFT,) * 4, value=-1)
    largest, smallest = (sign * torch.nn.functional.max_pool2d(sign * around, 2 * _SOFT + 1, 1) for sign in (1, -1))
    return (largest == smallest)[:, 0]
