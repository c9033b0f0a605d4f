"""The configuration of a training run: frozen dataclasses that a YAML file fills.

:mod:`stm_fast.training.config_file` validates types and limits. The numbers of both stages of the paper (STM,
"Two-stage Training" and "Training Details") are in `configs/`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from stm_fast.arguments import Limits
from stm_fast.choices import BackendName, VideoSetName
from stm_fast.data.augmentation import Augmentation
from stm_fast.network import Architecture
from stm_fast.network.architecture import STRIDE

# values beyond these are mistakes, or would exhaust the memory long after the run began
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
    """Videos with a mask for every frame that is drawn."""

    kind: VideoSetName
    path: str
    split: str = "train"
    weight: SourceWeight = 1.0
    skip_divisor: Count = (
        1  # YouTube-VOS is annotated every fifth frame: most recipes divide the skip by 5, STM does not
    )


@dataclass(frozen=True)
class ImageData:
    """Still images with masks, which random motion turns into clips (stage 1).

    The folder has `JPEGImages` and `Annotations`, unless the globs `pictures` and `masks` say where they are.
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
    """As in :class:`stm_fast.data.synthetic_source.SyntheticSource`."""

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
    """What a training sample is."""

    frames: Annotated[int, Limits(ge=2, le=1000)] = 3  # one with its mask, the others to segment
    size: tuple[CropSide, CropSide] = (384, 384)  # height, width
    max_objects: ObjectCount = 3


@dataclass(frozen=True)
class Skip:
    """The most frames skipped between two of a clip: `first`, then `step` more every `every` epochs, up to `most`.

    The author's curriculum: 0 to 25, 5 more every 20 epochs.
    """

    first: CountFrom0 = 0
    step: CountFrom0 = 5
    every: Count = 20
    most: CountFrom0 = 25


@dataclass(frozen=True)
class Optimizer:
    """An optimizer step takes `batch` clips over all processes; each process takes its share in `accumulate` parts, one
    after the other, which saves memory and, with `batch_norm: fixed`, changes nothing else."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Rate = 1e-5
    weight_decay: Weight = 0.0
    clip_norm: Annotated[float, Limits(gt=0)] | None = None
    batch: ClipCount = 4
    accumulate: ClipCount = 1
    trunk_lr: Rate | None = None  # of the encoders' trunks, if it differs


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes over the steps; see :mod:`stm_fast.training.schedule`."""

    name: Literal["constant", "poly", "cosine"] = "constant"
    warmup: CountFrom0 = 0  # steps
    power: Weight = 0.9


@dataclass(frozen=True)
class Loss:
    """Arguments of :class:`stm_fast.training.step.ClipLoss`, by name."""

    iou_weight: Weight = 0.0
    affinity_weight: Weight = 0.0
    detach_memory: bool = False


@dataclass(frozen=True)
class Validation:
    """J&F of whole sequences, every `every` epochs."""

    kind: VideoSetName
    path: str
    split: str = "val"
    every: Count = 1
    max_size: MaxSize | None = None  # downscale so that the shorter side is at most this
    min_size: Side = 1  # upscale frames whose shorter side is below this
    memory_every: Count = 5  # frames


@dataclass(frozen=True)
class SyntheticValidation:
    """The same on synthetic clips.

    Attributes:
        first: number of the first clip; training uses those from 0 up to its `length`: larger numbers are unseen.
        clips: how many.
        frames, objects: of each, as for training.
    """

    kind: Literal["synthetic"]
    first: CountFrom0 = 1_000_000
    clips: ClipCount = 10
    frames: ClipCount = 40
    objects: ObjectCounts = (1, 2, 3)
    height: Side = 144
    width: Side = 192
    every: Count = 1
    max_size: MaxSize | None = None
    min_size: Side = 1
    memory_every: Count = 5


@dataclass(frozen=True)
class Log:
    """How often, in steps, something is written."""

    every: Count = 20  # a line with the mean loss since the last one
    pictures: Count | None = 1000  # a clip, its annotation and the prediction
    checkpoint: Count = 1000
    compact: bool = False  # checkpoints of a third of the size, nearly exact: :mod:`stm_fast.training.compact`


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run.

    Attributes:
        weights: a checkpoint to start from, such as that of stage 1, or "default", the package's own.
        backbone_weights: "imagenet" or a file, for all encoders; ignored if `weights` is given.
        frozen_stages: how many stages of the trunks, after their stem, keep their initial weights; 0 trains all.
        batch_norm: "fixed" uses stored statistics as the paper does, "batch" those of the batch, for runs from scratch;
            each process and each part of a batch then has its own.
        backend: of the memory read.
        epochs, clips_per_epoch: how long; an epoch is only a unit that the curriculum and validation count in.
        ema: decay of the average of the weights that is validated and kept; None keeps the weights themselves.
        loading: "workers" decode and augment on the CPU; "device" keeps all images on the device and augments whole
            batches there, for a GPU that its CPU cannot keep busy.
        workers: processes that load clips; 0 loads them between the steps.
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
        """Files that the initial weights may be read from."""
        return [Path(start) for start in (self.weights, self.backbone_weights) if start is not None]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.clips_per_epoch // self.optimizer.batch
