"""A configuration's parts: the network and where its clips come from."""

from dataclasses import asdict
from pathlib import Path

import torch

from stm_fast.data.clips import ClipDataset
from stm_fast.data.coco import CocoSource
from stm_fast.data.device_clips import DeviceClips
from stm_fast.data.procedural import SyntheticSource
from stm_fast.data.raw import ClipSource
from stm_fast.data.sequences import SETS
from stm_fast.data.stills import still_folder, still_globs
from stm_fast.data.videos import VideoSource
from stm_fast.errors import InputError
from stm_fast.network import STM
from stm_fast.network.backbone import batch_norm_mode, has_batch_norm
from stm_fast.network.checkpoint import load_backbone, load_imagenet, load_start
from stm_fast.network.released import weights_file
from stm_fast.training.config import CocoData, Data, SyntheticData, TrainingConfig, VideoData
from stm_fast.training.step import ClipLoss


def build_clip_loss(config: TrainingConfig) -> ClipLoss:
    """The network a run starts from, drawn from its seed or loaded, inside its loss. Raises InputError."""
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
    loss = config.loss
    return ClipLoss(
        model,
        iou_weight=loss.iou_weight,
        affinity_weight=loss.affinity_weight,
        detach_memory=loss.detach_memory,
        backend=config.backend,
    )


def build_clips(config: TrainingConfig, skip_corrupt: bool) -> ClipDataset:
    """The mixture a run draws its clips from. Raises InputError where data are missing."""
    if config.loading == "device" and skip_corrupt:
        raise InputError("loading: found device, for which every picture is decoded, expected no --skip-corrupt")
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
    if isinstance(entry, SyntheticData):
        return SyntheticSource(
            entry.length,
            entry.height,
            entry.width,
            entry.frames,
            entry.objects,
            object_size=entry.object_size,
            hidden=entry.hidden,
        )
    if isinstance(entry, VideoData):
        return VideoSource(SETS[entry.kind](Path(entry.path), entry.split), entry.skip_divisor)
    if isinstance(entry, CocoData):
        return CocoSource(Path(entry.pictures), Path(entry.annotations))
    if (entry.pictures is None) != (entry.masks is None):
        raise InputError(f"{entry.path}: found a pattern of pictures or of masks alone, expected both or none")
    if entry.pictures is not None and entry.masks is not None:
        return still_globs(Path(entry.path), entry.pictures, entry.masks)
    return still_folder(Path(entry.path))
