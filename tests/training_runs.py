"""Training runs small enough for a test."""

from pathlib import Path

import pytest
import torch

from stm_fast.training.building import build_clip_loss, build_clips
from stm_fast.training.checkpoint import read_state
from stm_fast.training.config_file import from_plain
from stm_fast.training.log import read_log
from stm_fast.training.trainer import Trainer

SMALL = {
    "network": {"backbone": "resnet18_half", "key_dim": 8, "value_dim": 8, "decoder_dim": 8},
    "batch_norm": "batch",
    "data": [{"kind": "synthetic", "length": 3, "height": 48, "width": 48}],
    "clips": {"size": [32, 32], "max_objects": 2},
    "optimizer": {"lr": 1e-3, "batch": 2},
    "schedule": {"name": "poly", "warmup": 2},
    "epochs": 2,
    "clips_per_epoch": 5,  # steps and epochs do not fit one another
    "log": {"every": 2, "pictures": None, "checkpoint": 2},
}


def make_trainer(folder: Path, resume: bool = False, skip_corrupt: bool = False, **changes) -> Trainer:
    config = from_plain(SMALL | changes, "test")
    return Trainer(config, build_clip_loss(config), build_clips(config, skip_corrupt), folder, resume=resume)


def stop_after(calls: int):
    """A `stop` that is true from the given call on."""
    left = iter([False] * (calls - 1))
    return lambda: next(left, True)


def curve(folder: Path) -> list[dict]:
    """The log without what a clock says."""
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
