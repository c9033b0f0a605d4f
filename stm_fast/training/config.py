"""What a training run is made of: frozen dataclasses that a YAML file fills.

The numbers of both stages of the paper (STM, "Two-stage Training" and "Training Details") are in `configs/`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stm_fast.data.augmentation import Augmentation
from stm_fast.network import Architecture


@dataclass(frozen=True)
class VideoData:
    """Videos with a mask for every frame that is drawn."""

    kind: Literal["davis16", "davis17", "youtube-vos", "folder"]
    path: str
    split: str = "train"
    weight: float = 1.0  # how often clips come from here, relative to the other entries
    skip_divisor: int = 1  # YouTube-VOS is annotated every fifth frame: most recipes divide the skip by 5, STM does not


@dataclass(frozen=True)
class StillData:
    """Still images with masks, of which clips are made by moving them about (stage 1).

    The folder has `JPEGImages` and `Annotations`, or `pictures` and `masks` say by glob what in it is which.
    """

    kind: Literal["stills"]
    path: str
    pictures: str | None = None
    masks: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class CocoData:
    """Pictures of COCO with their instances, for stage 1."""

    kind: Literal["coco"]
    pictures: str  # folder
    annotations: str  # JSON of the instances
    weight: float = 1.0


@dataclass(frozen=True)
class SyntheticData:
    """Procedural clips, as in :class:`stm_fast.data.procedural.SyntheticSource`."""

    kind: Literal["synthetic"]
    length: int = 10_000
    height: int = 144
    width: int = 192
    frames: int = 100
    objects: tuple[int, ...] = (1, 2, 3)
    object_size: tuple[float, float] = (0.16, 0.24)
    hidden: float = 0.0
    weight: float = 1.0


Data = VideoData | StillData | CocoData | SyntheticData


@dataclass(frozen=True)
class Clips:
    """What a training sample is."""

    frames: int = 3
    size: tuple[int, int] = (384, 384)  # height, width
    max_objects: int = 3


@dataclass(frozen=True)
class Skip:
    """The most frames left out between two of a clip: `first`, then `step` more every `every` epochs, up to `most`.

    The author's curriculum: 0 to 25, 5 more every 20 epochs.
    """

    first: int = 0
    step: int = 5
    every: int = 20
    most: int = 25


@dataclass(frozen=True)
class Optimizer:
    """The clips of one optimiser step are `batch`, over all processes; each process takes its share in `accumulate`
    parts, one after the other, which saves memory and, with `batch_norm: fixed`, changes nothing else."""

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-5
    weight_decay: float = 0.0
    clip_norm: float | None = None
    batch: int = 4
    accumulate: int = 1
    trunk_lr: float | None = None  # of the encoders' trunks, where they learn at a rate of their own


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes over the steps; see :mod:`stm_fast.training.schedule`."""

    name: Literal["constant", "poly", "cosine"] = "constant"
    warmup: int = 0  # steps
    power: float = 0.9


@dataclass(frozen=True)
class Loss:
    """As in :class:`stm_fast.training.step.ClipLoss`."""

    iou_weight: float = 0.0
    affinity_weight: float = 0.0
    detach_memory: bool = False


@dataclass(frozen=True)
class Validation:
    """J&F of whole sequences, every so many epochs."""

    kind: Literal["davis16", "davis17", "youtube-vos", "folder"]
    path: str
    split: str = "val"
    every: int = 1  # epochs
    max_size: int | None = None  # the shorter side of larger frames, in pixels, for the network
    min_size: int = 1  # of smaller frames
    memory_every: int = 5  # frames


@dataclass(frozen=True)
class SyntheticValidation:
    """The same on procedural clips.

    Attributes:
        first: number of the first clip; training takes them from 0 up to its `length`, so that fresh ones lie beyond.
        clips: how many.
        frames, objects: of each, as for training.
    """

    kind: Literal["synthetic"]
    first: int = 1_000_000
    clips: int = 10
    frames: int = 40
    objects: tuple[int, ...] = (1, 2, 3)
    height: int = 144
    width: int = 192
    every: int = 1
    max_size: int | None = None
    min_size: int = 1
    memory_every: int = 5


@dataclass(frozen=True)
class Log:
    """How often, in steps, something is written."""

    every: int = 20  # a line with the mean loss since the last one
    pictures: int | None = 1000  # a clip, its truth and what the network makes of it
    checkpoint: int = 1000
    compact: bool = False  # checkpoints of a third of the size, nearly exact: :mod:`stm_fast.training.compact`


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run.

    Attributes:
        weights: a checkpoint to start from, such as what stage 1 left, or "default", the package's own.
        backbone_weights: "imagenet" or a file, for all encoders; not looked at where `weights` is given.
        frozen_stages: so many stages of the trunks, and their stem, keep the weights that they start with.
        batch_norm: "fixed" uses stored statistics as the paper does, "batch" those of the batch, for runs from scratch;
            of several processes and parts each has its own.
        backend: of the memory read.
        epochs, clips_per_epoch: how long; an epoch is only a unit that the curriculum and validation count in.
        ema: decay of the average of the weights that is validated and kept; None keeps the weights themselves.
        loading: "workers" decode and augment on the CPU; "device" keeps all pictures on the device and augments there,
            whole batches at a time, which a GPU that is faster than its CPU wants.
        workers: processes that load clips; 0 loads them between the steps.
    """

    data: tuple[Data, ...]
    epochs: int
    clips_per_epoch: int
    network: Architecture = field(default_factory=Architecture)
    weights: str | None = None
    backbone_weights: str | None = None
    frozen_stages: int = 0
    batch_norm: Literal["fixed", "batch"] = "fixed"
    seed: int = 0
    clips: Clips = field(default_factory=Clips)
    augmentation: Augmentation = field(default_factory=Augmentation)
    skip: Skip = field(default_factory=Skip)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    backend: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float | None = None
    loading: Literal["workers", "device"] = "workers"
    workers: int = 0
    validation: Validation | SyntheticValidation | None = None
    log: Log = field(default_factory=Log)

    @property
    def starts(self) -> list[Path]:
        """What the weights are read from before the first step, where it is a file."""
        return [Path(start) for start in (self.weights, self.backbone_weights) if start is not None]

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.clips_per_epoch // self.optimizer.batch
