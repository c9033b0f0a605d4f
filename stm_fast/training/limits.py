"""Numbers of a configuration that make no sense are refused before anything is loaded."""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, get_args

from stm_fast.choices import BackendName
from stm_fast.errors import InputError, shown
from stm_fast.network.architecture import MOST_WAVES, STRIDE, WIDEST
from stm_fast.training.config import SyntheticData, SyntheticValidation, TrainingConfig, VideoData

# what is beyond is a mistake, or would end the process for want of memory long after it was begun
_MOST = 10**9
_MOST_CLIPS = 2**16
_MOST_OBJECTS = 255
_MOST_FRAMES = 1000  # of a clip
_MOST_WORKERS = 512
_MOST_PIXELS = 2**34  # of all frames of a step: 48 GiB of them in 8 bits
_LONGEST_SIDE = 2**13
_LARGEST = 1000.0

# the key, what was found, whether that will do, what was expected
Check = tuple[str, Any, bool, str]


def check_limits(config: TrainingConfig, source: str) -> None:
    """Raises InputError that names `source` and the first key whose value is out of range."""
    for key, found, fits, expected in chain(_lengths(config), _rates(config), _names(config)):
        if not fits:
            raise InputError(f"{source}: {key}: found {shown(found)}, expected {expected}")


def _lengths(config: TrainingConfig) -> Iterator[Check]:
    """Whole numbers, most of which count something."""
    network, clips, skip, log = config.network, config.clips, config.skip, config.log
    # the number, the least and the most
    ranges: dict[str, tuple[int | None, int, int]] = {
        "clips_per_epoch": (config.clips_per_epoch, 1, _MOST),
        "epochs": (config.epochs, 1, _MOST),
        "optimizer.batch": (config.optimizer.batch, 1, _MOST_CLIPS),
        "optimizer.accumulate": (config.optimizer.accumulate, 1, _MOST_CLIPS),
        "clips.max_objects": (clips.max_objects, 1, _MOST_OBJECTS),
        "skip.every": (skip.every, 1, _MOST),
        "network.key_dim": (network.key_dim, 1, WIDEST),
        "network.value_dim": (network.value_dim, 1, WIDEST),
        "network.decoder_dim": (network.decoder_dim, 1, WIDEST),
        "network.position_waves": (network.position_waves, 0, MOST_WAVES),
        "log.every": (log.every, 1, _MOST),
        "log.pictures": (log.pictures, 1, _MOST),
        "log.checkpoint": (log.checkpoint, 1, _MOST),
        "frozen_stages": (config.frozen_stages, 0, _MOST),
        "workers": (config.workers, 0, _MOST_WORKERS),
        "schedule.warmup": (config.schedule.warmup, 0, _MOST),
        "skip.first": (skip.first, 0, _MOST),
        "skip.step": (skip.step, 0, _MOST),
        "skip.most": (skip.most, 0, _MOST),
    }
    ranges |= _of_validation(config) | _of_data(config)
    for key, (number, least, most) in ranges.items():
        yield key, number, number is None or number >= least, f"at least {least}"
        yield key, number, number is None or number <= most, f"at most {most}"
    yield "seed", config.seed, 0 <= config.seed < 2**63, "0 to 2^63 - 1"
    yield "clips.frames", clips.frames, clips.frames >= 2, "at least 2: one with its mask, one to segment"
    yield "clips.frames", clips.frames, clips.frames <= _MOST_FRAMES, f"at most {_MOST_FRAMES}"
    whole = all(side > 0 and side % STRIDE == 0 for side in clips.size)
    yield "clips.size", list(clips.size), whole, f"multiples of {STRIDE}"
    yield "clips.size", list(clips.size), max(clips.size) <= _LONGEST_SIDE, f"at most {_LONGEST_SIDE}"
    pixels = config.optimizer.batch * clips.frames * math.prod(clips.size)
    yield (
        "optimizer.batch",
        config.optimizer.batch,
        pixels <= _MOST_PIXELS,
        (f"at most {_MOST_PIXELS} pixels a step, where clips have {clips.frames} frames of {list(clips.size)}"),
    )
    yield "epochs", config.epochs, config.steps >= 1, f"clips for one batch of {config.optimizer.batch} at least"


def _of_validation(config: TrainingConfig) -> dict[str, tuple[int | None, int, int]]:
    validation = config.validation
    if validation is None:
        return {}
    ranges: dict[str, tuple[int | None, int, int]] = {
        "validation.every": (validation.every, 1, _MOST),
        "validation.memory_every": (validation.memory_every, 1, _MOST),
        "validation.min_size": (validation.min_size, 1, _LONGEST_SIDE),
        "validation.max_size": (validation.max_size, max(16, validation.min_size), _LONGEST_SIDE),
    }
    if isinstance(validation, SyntheticValidation):
        ranges |= _of_clips("validation", validation)
        ranges |= {
            "validation.clips": (validation.clips, 1, _MOST_CLIPS),
            "validation.first": (validation.first, 0, _MOST),
        }
    return ranges


def _of_data(config: TrainingConfig) -> dict[str, tuple[int | None, int, int]]:
    ranges: dict[str, tuple[int | None, int, int]] = {}
    for index, entry in enumerate(config.data):
        if isinstance(entry, SyntheticData):
            ranges |= _of_clips(f"data.{index}", entry)
            ranges[f"data.{index}.length"] = entry.length, 1, _MOST
        elif isinstance(entry, VideoData):
            ranges[f"data.{index}.skip_divisor"] = entry.skip_divisor, 1, _MOST
    return ranges


def _of_clips(key: str, clips: SyntheticData | SyntheticValidation) -> dict[str, tuple[int | None, int, int]]:
    """Of procedural clips."""
    objects = {f"{key}.objects.{at}": (number, 1, _MOST_OBJECTS) for at, number in enumerate(clips.objects)}
    return {
        f"{key}.height": (clips.height, 1, _LONGEST_SIDE),
        f"{key}.width": (clips.width, 1, _LONGEST_SIDE),
        f"{key}.frames": (clips.frames, 1, _MOST_CLIPS),
        **objects,
    }


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

    numbers = {
        "optimizer.lr": optimizer.lr,
        "optimizer.trunk_lr": trunk_lr,
        "optimizer.weight_decay": optimizer.weight_decay,
        "schedule.power": config.schedule.power,
        "loss.iou_weight": config.loss.iou_weight,
        "loss.affinity_weight": config.loss.affinity_weight,
    }
    numbers |= {
        f"augmentation.{name}": value for name, value in vars(config.augmentation).items() if type(value) is float
    }
    for key, number in numbers.items():
        yield key, number, number is None or number <= _LARGEST, f"at most {_LARGEST:g}"
    for index, entry in enumerate(config.data):
        fits = 0 <= entry.weight <= _MOST
        yield f"data.{index}.weight", entry.weight, fits, f"0 to {_MOST}"


def _names(config: TrainingConfig) -> Iterator[Check]:
    yield "data", [], len(config.data) > 0, "one source at least"
    backends = get_args(BackendName)
    yield "backend", config.backend, config.backend in backends, f"one of {', '.join(backends)}"
