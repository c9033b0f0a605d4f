"""Numbers of a configuration that make no sense are refused before anything is loaded."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, get_args

from stm_fast.choices import BackendName
from stm_fast.errors import InputError
from stm_fast.network.architecture import STRIDE
from stm_fast.training.config import TrainingConfig

# the key, what was found, whether that will do, what was expected
Check = tuple[str, Any, bool, str]


def check_limits(config: TrainingConfig, source: str) -> None:
    """Raises InputError that names `source` and the first key whose value is out of range."""
    for key, found, fits, expected in chain(_lengths(config), _rates(config), _names(config)):
        if not fits:
            raise InputError(f"{source}: {key}: found {found!r}, expected {expected}")


def _lengths(config: TrainingConfig) -> Iterator[Check]:
    """Whole numbers, most of which count something."""
    counts = {
        "clips_per_epoch": config.clips_per_epoch,
        "epochs": config.epochs,
        "optimizer.batch": config.optimizer.batch,
        "optimizer.accumulate": config.optimizer.accumulate,
        "clips.max_objects": config.clips.max_objects,
        "skip.every": config.skip.every,
        "network.key_dim": config.network.key_dim,
        "network.value_dim": config.network.value_dim,
        "network.decoder_dim": config.network.decoder_dim,
        "log.every": config.log.every,
        "log.pictures": config.log.pictures,
        "log.checkpoint": config.log.checkpoint,
    }
    if config.validation is not None:
        validation = config.validation
        counts |= {"validation.every": validation.every, "validation.memory_every": validation.memory_every}
        counts |= {"validation.min_size": validation.min_size}
        most, least = validation.max_size, max(16, validation.min_size)
        yield "validation.max_size", most, most is None or most >= least, f"at least {least}"
    for key, count in counts.items():
        yield key, count, count is None or count >= 1, "at least 1"
    naturals = {
        "network.position_waves": config.network.position_waves,
        "frozen_stages": config.frozen_stages,
        "workers": config.workers,
        "schedule.warmup": config.schedule.warmup,
        "skip.first": config.skip.first,
        "skip.step": config.skip.step,
        "skip.most": config.skip.most,
    }
    for key, number in naturals.items():
        yield key, number, number >= 0, "at least 0"
    yield "seed", config.seed, 0 <= config.seed < 2**63, "0 to 2^63 - 1"
    frames, size = config.clips.frames, config.clips.size
    yield "clips.frames", frames, frames >= 2, "at least 2: one with its mask, one to segment"
    whole = all(side > 0 and side % STRIDE == 0 for side in size)
    yield "clips.size", list(size), whole, f"multiples of {STRIDE}"
    yield "epochs", config.epochs, config.steps >= 1, f"clips for one batch of {config.optimizer.batch} at least"


def _rates(config: TrainingConfig) -> Iterator[Check]:
    optimizer, ema = config.optimizer, config.ema
    yield "optimizer.lr", optimizer.lr, optimizer.lr > 0, "more than 0"
    trunk_lr = optimizer.trunk_lr
    yield "optimizer.trunk_lr", trunk_lr, trunk_lr is None or trunk_lr > 0, "more than 0"
    yield "optimizer.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, "at least 0"
    norm = optimizer.clip_norm
    yield "optimizer.clip_norm", norm, norm is None or norm > 0, "more than 0"
    yield "schedule.power", config.schedule.power, config.schedule.power >= 0, "at least 0"
    yield "loss.iou_weight", config.loss.iou_weight, config.loss.iou_weight >= 0, "at least 0"
    yield "loss.affinity_weight", config.loss.affinity_weight, config.loss.affinity_weight >= 0, "at least 0"
    yield "ema", ema, ema is None or 0 <= ema < 1, "0 or more, less than 1"


def _names(config: TrainingConfig) -> Iterator[Check]:
    yield "data", [], len(config.data) > 0, "one source at least"
    backends = get_args(BackendName)
    yield "backend", config.backend, config.backend in backends, f"one of {', '.join(backends)}"
