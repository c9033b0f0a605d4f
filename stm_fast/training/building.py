"""Builds the network and the clips of a configuration."""

from dataclasses import asdict
from pathlib import Path

import torch

from stm_fast.data.clips import ClipDataset
from stm_fast.data.coco import CocoSource
from stm_fast.data.device_clips import DeviceClips
from stm_fast.data.images import image_source
from stm_fast.data.sequences import SETS
from stm_fast.data.source import ClipSource
from stm_fast.data.synthetic_source import SyntheticSource
from stm_fast.data.videos import VideoSource
from stm_fast.errors import InputError, option
from stm_fast.network import STM
from stm_fast.network.backbone import batch_norm_mode, has_batch_norm
from stm_fast.network.checkpoint import load_backbone, load_imagenet, load_start
from stm_fast.network.released import weights_file
from stm_fast.training.config import CocoData, Data, SyntheticData, TrainingConfig, VideoData
from stm_fast.training.step import ClipLoss


def build_clip_loss(config: TrainingConfig) -> ClipLoss:
    """The initial network, from the seed or from files, inside its loss.

    Raises:
        InputError: weights that are missing, damaged or do not match, or incompatible options.
    """
    torch.manual_seed(config.seed)
    try:
        model = STM(**asdict(config.network))
    except ValueError as error:
        raise InputError(f"network.{error}") from None
    if config.weights is not None:
        load_start(model, weights_file(config.weights))
    elif config.backbone_weights == "imagenet":
        load_imagenet(model)
    elif config.backbone_weights is not None:
        load_backbone(model, Path(config.backbone_weights))
    if config.batch_norm == "batch" and not has_batch_norm(model):
        raise InputError(f"batch_norm: found batch, but {config.network.backbone} has it folded in; expected fixed")
    model.freeze(config.frozen_stages)
    batch_norm_mode(model, config.batch_norm)
    return ClipLoss(model, **asdict(config.loss), backend=config.backend)


def build_clips(config: TrainingConfig, skip_corrupt: bool) -> ClipDataset:
    """The mixture of sources that clips are drawn from.

    Raises:
        InputError: data that are missing or invalid, or incompatible options.
    """
    if config.loading == "device" and skip_corrupt:
        raise InputError(
            f"loading: found device, which decodes every image at the start, expected {option('skip_corrupt', False)}"
        )
    kind = DeviceClips if config.loading == "device" else ClipDataset
    return kind(
        [(_source(entry), entry.weight) for entry in config.data],
        length=config.clips_per_epoch,
        frames=config.clips.frames,
        size=config.clips.size,
        max_objects=config.clips.max_objects,
        augmentation=config.augmentation,
        seed=config.seed,
        skip_corrupt=skip_corrupt,
    )


def _source(entry: Data) -> ClipSource:
    """Opens an entry of `data`. Raises InputError if files are missing."""
    if isinstance(entry, SyntheticData):
        arguments = asdict(entry)
        del arguments["kind"], arguments["weight"]
        return SyntheticSource(**arguments)
    if isinstance(entry, VideoData):
        return VideoSource(SETS[entry.kind](Path(entry.path), entry.split), entry.skip_divisor)
    if isinstance(entry, CocoData):
        return CocoSource(Path(entry.pictures), Path(entry.annotations))
    return image_source(Path(entry.path), entry.pictures, entry.masks)
