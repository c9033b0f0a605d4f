"""The configuration of a training run: frozen dataclasses, to be filled from a YAML file.

:mod:`stm_fast.training.config_file` validates types and limits. The recipes `stage1` and `stage2` have the numbers of
the paper (STM, "Two-stage Training" and "Training Details").
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from stm_fast.arguments import Limits
from stm_fast.choices import BackendName, VideoSetName
from stm_fast.data.augmentation import Augmentation
from stm_fast.network import Architecture
from stm_fast.network.architecture import STRIDE

# values beyond these limits are mistakes, or would run out of memory long after the start
Count = Annotated[int, Limits(ge=1, le=10**9)]
CountFrom0 = Annotated[int, Limits(ge=0, le=10**9)]
ClipCount = Annotated[int, Limits(ge=1, le=2**16)]
ObjectCount = Annotated[int, Limits(ge=1, le=255)]
ObjectCounts = Annotated[tuple[ObjectCount, ...], Limits(min_length=1)]
Side = Annotated[int, Limits(ge=1, le=2**13)]  # pixels
MaxSize = Annotated[int, Limits(ge=16, le=2**13)]  # pixels
CropSide = Annotated[int, Limits(ge=STRIDE, le=2**13, multiple_of=STRIDE)]  # pixels
Rate = Annotated[float, Limits(gt=0, le=1000)]
Weight = Annotated[float, Limits(ge=0, le=1000)]
SourceWeight = Annotated[float, Limits(ge=0, le=1e9)]  # how often clips come from a source, relative to the others


@dataclass(frozen=True)
class VideoData:
    """Videos with a mask for every frame."""

    kind: VideoSetName
    path: str
    split: str = "train"
    weight: SourceWeight = 1.0
    # YouTube-VOS is annotated every fifth frame: most recipes divide the skip by 5, STM does not
    skip_divisor: Count = 1


@dataclass(frozen=True)
class ImageData:
    """Still images with masks, which random motion turns into clips (stage 1).

    The folder contains `JPEGImages` and `Annotations`, unless glob patterns `pictures` and `masks` are given.
    """

    kind: Literal["stills"]
    path: str
    pictures: str | None = None
    masks: str | None = None
    weight: SourceWeight = 1.0


@dataclass(frozen=True)
class CocoData:
    """Images of COCO with their instances, for stage 1."""

    kind: Literal["coco"]
    pictures: str  # folder
    annotations: str  # JSON of the instances
    weight: SourceWeight = 1.0


@dataclass(frozen=True)
class SyntheticData:
    """Arguments of :class:`stm_fast.data.synthetic_source.SyntheticSource`."""

    kind: Literal["synthetic"]
    length: Count = 10_000
    height: Side = 144
    width: Side = 192
    frames: ClipCount = 100
    objects: ObjectCounts = (1, 2, 3)
    object_size: tuple[float, float] = (0.16, 0.24)
    hidden: Annotated[float, Limits(ge=0, le=1)] = 0.0
    weight: SourceWeight = 1.0


# the field `kind` says which class a section is
BY_KIND = Limits(discriminator="kind")
Data = VideoData | ImageData | CocoData | SyntheticData


@dataclass(frozen=True)
class Clips:
    """The shape of a training sample."""

    frames: Annotated[int, Limits(ge=2, le=1000)] = 3  # one with its mask, and the others to segment
    size: tuple[CropSide, CropSide] = (384, 384)  # height, width
    max_objects: ObjectCount = 3


@dataclass(frozen=True)
class Skip:
    """The most frames skipped between two frames of a clip: `first`, plus `step` every `every` epochs, up to `most`.

    The defaults are the curriculum of STM's author.
    """

    first: CountFrom0 = 0
    step: CountFrom0 = 5
    every: Count = 20
    most: CountFrom0 = 25


@dataclass(frozen=True)
class Optimizer:
    """A step uses `batch` clips over all processes. Each process accumulates gradients over `accumulate` parts of its
    share, which saves memory and, with `batch_norm: fixed`, does not change the result."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Rate = 1e-5
    weight_decay: Weight = 0.0
    clip_norm: Annotated[float, Limits(gt=0)] | None = None
    batch: ClipCount = 4
    accumulate: ClipCount = 1
    trunk_lr: Rate | None = None  # of the trunks, if it is not `lr`


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step, see :mod:`stm_fast.training.schedule`."""

    name: Literal["constant", "poly", "cosine"] = "constant"
    warmup: CountFrom0 = 0  # steps
    power: Weight = 0.9


@dataclass(frozen=True)
class Loss:
    """Arguments of :class:`stm_fast.training.step.ClipLoss`."""

    iou_weight: Weight = 0.0
    affinity_weight: Weight = 0.0
    detach_memory: bool = False


@dataclass(frozen=True, kw_only=True)
class _Validation:
    """J&F of whole sequences."""

    every: Count = 1  # epochs
    max_size: MaxSize | None = None  # downscale so that the shorter side is at most this
    min_size: Side = 1  # upscale frames whose shorter side is below this
    memory_every: Count = 5  # frames


@dataclass(frozen=True)
class Validation(_Validation):
    """Validation on a benchmark set."""

    kind: VideoSetName
    path: str
    split: str = "val"


@dataclass(frozen=True)
class SyntheticValidation(_Validation):
    """Validation on synthetic clips.

    Attributes:
        first: number of the first clip. Training uses clips 0 to `length` - 1; larger numbers are unseen.
        clips: number of clips.
        frames, objects, height, width: as in `SyntheticData`.
    """

    kind: Literal["synthetic"]
    first: CountFrom0 = 1_000_000
    clips: ClipCount = 10
    frames: ClipCount = 40
    objects: ObjectCounts = (1, 2, 3)
    height: Side = 144
    width: Side = 192


@dataclass(frozen=True)
class Log:
    """Numbers of steps between two outputs."""

    every: Count = 20  # log lines, with the mean loss since the last line
    pictures: Count | None = 1000  # images of a clip, its annotation and the prediction
    checkpoint: Count = 1000
    compact: bool = False  # checkpoints of a third of the size, with rounding: :mod:`stm_fast.training.compact`


@dataclass(frozen=True)
class TrainingConfig:
    """A training run.

    Attributes:
        weights: initial weights: a checkpoint, such as that of stage 1, or "default", the package's weights.
        backbone_weights: "imagenet" or a file, for all encoders; ignored if `weights` is given.
        frozen_stages: freezes the stem and this many stages of the trunks; 0 trains everything.
        batch_norm: "fixed" uses stored statistics, as the paper does; "batch" uses those of the batch, in each process
            and each part of a batch separately, to train from scratch.
        backend: of the memory read.
        epochs, clips_per_epoch: length of the run; an epoch is only a unit for the curriculum and validation.
        ema: decay of the moving average of the weights, which is then validated and saved in their place.
        loading: "workers" decodes and augments on the CPU; "device" keeps all images on the device and augments whole
            batches there, if the CPU is too slow for the GPU.
        workers: processes that load clips; 0 loads them between steps.
    """

    data: Annotated[tuple[Annotated[Data, BY_KIND], ...], Limits(min_length=1)]
    epochs: Count
    clips_per_epoch: Count
    network: Architecture = field(default_factory=Architecture)
    weights: str | None = None
    backbone_weights: str | None = None
    frozen_stages: CountFrom0 = 0
    batch_norm: Literal["fixed", "batch"] = "fixed"
    seed: Annotated[int, Limits(ge=0, le=2**63 - 1)] = 0
    clips: Clips = field(default_factory=Clips)
    augmentation: Augmentation = field(default_factory=Augmentation)
    skip: Skip = field(default_factory=Skip)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    backend: BackendName = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: Annotated[float, Limits(ge=0, lt=1)] | None = None
    loading: Literal["workers", "device"] = "workers"
    workers: Annotated[int, Limits(ge=0, le=512)] = 0
    validation: Annotated[Validation | SyntheticValidation, BY_KIND] | None = None
    log: Log = field(default_factory=Log)

    @property
    def starts(self) -> list[Path]:
        """Files of initial weights."""
        return [Path(start) for start in (self.weights, self.backbone_weights) if start is not None]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.clips_per_epoch // self.optimizer.batch
