"""What is timed, by name: the shapes of memory reads and a selection of them, and whole frames. Needs no torch."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from stm_fast.choices import ByteLayout, Engine, RouteName
from stm_fast.errors import InputError

# the feature map [h, w] of a frame at stride 16, after padding to a multiple of 16
FEATURE_MAPS = {"480p": (30, 54), "720p": (45, 80), "1080p": (68, 120)}
# seconds on two CPU cores; a GPU is fast enough for more
USUAL_SHAPES = {
    "cpu": ("480p-T1-O1", "480p-T5-O1"),
    "cuda": ("480p-T1-O1", "480p-T5-O1", "480p-T20-O1", "480p-T20-O3", "480p-T100-O1", "1080p-T20-O1"),
}
CPU_MINUTES = 2.7  # no route of the usual shapes starts later on a CPU, so that the run ends within three
OURS = (*get_args(Engine), *get_args(ByteLayout))
_UNCOMPILED = ("published", "last-dim", "chunks", "sdpa")
USUAL_ROUTES = {
    "cpu": (*_UNCOMPILED, "sdpa-flash", "sdpa-efficient", "sdpa-flash-split", "compile", "flex", *OURS),
    "cuda": get_args(RouteName),
}
USUAL_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
QUICK_SHAPES, QUICK_ROUTES = ("480p-T1-O1",), (*_UNCOMPILED, *OURS)
QUICK_SECONDS, QUICK_ROUNDS = 2.0, 3
GRID_FRAMES, GRID_OBJECTS = (1, 5, 20, 100, 1000), (1, 3, 10)
# of whole frames [H, W]
SIZES = {"64p": (64, 112), "240p": (240, 428), "480p": (480, 854), "1080p": (1080, 1920)}


@dataclass(frozen=True)
class Shape:
    """A memory read without its numbers: M queries of a frame, N memory rows for each object."""

    name: str
    queries: int  # M
    rows: int  # N
    objects: int  # O

    @property
    def frames(self) -> float:
        """T, how many frames the memory holds."""
        return self.rows / self.queries

    @property
    def affinity_elements(self) -> int:
        """Of the affinity that the published read makes and stm_fast does not."""
        return self.queries * self.rows * self.objects

    @property
    def series(self) -> str:
        """What shapes that differ in T alone have in common."""
        return re.sub(r"-[TN]\d+", "", self.name)


@dataclass(frozen=True)
class Selection:
    """Which reads are timed, and for how long.

    shapes, dtypes, routes: empty for what suits the device, until `complete` fills them in
    device:   "cpu" or "cuda"
    seconds:  spent on the rounds of one shape and dtype, unless `rounds` of them take longer
    rounds:   at the least
    deadline: seconds after which no further route is started; the others are recorded as skipped
    memory:   whether the extra memory is measured
    product:  rows of the matrices of torch.mm; by default as many as keep the device busy
    """

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    passes: tuple[str, ...]
    routes: tuple[str, ...]
    device: str
    seconds: float = 10.0
    rounds: int = 5
    deadline: float | None = None
    memory: bool = True
    product: int | None = None

    def complete(self, device: str) -> "Selection":
        """The selection with what suits a device where nothing is named."""
        deadline = 60 * CPU_MINUTES if device == "cpu" and not self.shapes else None
        return replace(
            self,
            shapes=self.shapes or tuple(map(parse_shape, USUAL_SHAPES[device])),
            dtypes=self.dtypes or USUAL_DTYPES[device],
            routes=self.routes or USUAL_ROUTES[device],
            device=device,
            deadline=deadline if self.deadline is None else self.deadline,
        )

    def quick(self) -> "Selection":
        """One small shape and nothing compiled, where nothing else is named; few rounds."""
        return replace(
            self,
            shapes=self.shapes or tuple(map(parse_shape, QUICK_SHAPES)),
            routes=self.routes or QUICK_ROUTES,
            seconds=min(self.seconds, QUICK_SECONDS),
            rounds=min(self.rounds, QUICK_ROUNDS),
        )

    def describe(self) -> dict[str, Any]:
        """The settings of a run, for its record."""
        return vars(self) | {"shapes": [shape.name for shape in self.shapes]}


def parse_shape(text: str) -> Shape:
    """The shape of a name: 480p-T20-O3, 8x14-T1-O1 (a feature map of 8 x 14) or M48-N32400-O1.

    Raises InputError for any other text.
    """
    n = "[1-9][0-9]{0,7}"
    match = re.fullmatch(rf"(?:({n}p|{n}x{n})-T({n})|M({n})-N({n}))-O({n})", text)
    if match is None or (match[1] and match[1].endswith("p") and match[1] not in FEATURE_MAPS):
        known = ", ".join(FEATURE_MAPS)
        raise InputError(
            f"shape: found {text[:40]!r}, expected for example 480p-T20-O3 ({known}), 8x14-T1-O1 or M48-N32400-O1"
        )
    frame, frames, queries, rows, objects = match.groups()
    if frame is None:
        return Shape(text, int(queries), int(rows), int(objects))
    height, width = FEATURE_MAPS.get(frame) or (int(size) for size in frame.split("x"))
    return Shape(text, height * width, int(frames) * height * width, int(objects))


def grid() -> list[Shape]:
    """Every resolution x T x objects, the small ones first."""
    names = (f"{frame}-T{t}-O{o}" for frame in FEATURE_MAPS for t in GRID_FRAMES for o in GRID_OBJECTS)
    return sorted(map(parse_shape, names), key=lambda shape: shape.affinity_elements)


@dataclass(frozen=True)
class FrameWorkload:
    """A whole frame: its size, its objects, how many frames the memory holds, and the network."""

    size: str = "480p"
    objects: int = 1
    memory_frames: int = 10  # the previous frame is read as well
    backbone: str = "resnet50"
    weights: str | None = None  # a checkpoint, whose backbone then counts; None: random weights from a seed

    def __str__(self) -> str:
        return f"{self.name}, {self.network}"

    @property
    def name(self) -> str:
        """What `parse_workload` takes."""
        return f"{self.size}-T{self.memory_frames}-O{self.objects}"

    @property
    def network(self) -> str:
        """The backbone, or the file name of the checkpoint."""
        return self.backbone if self.weights is None else Path(self.weights).name


def parse_workload(text: str, weights: str | None = None) -> FrameWorkload:
    """The workload of a name such as 480p-T10-O3. Raises InputError for any other text."""
    match = re.fullmatch(r"([0-9]{2,4}p)-T([1-9][0-9]{0,5})-O([1-9]|1[0-9]|20)", text)
    if match is None or match[1] not in SIZES:
        raise InputError(f"shape: found {text[:40]!r}, expected for example 480p-T10-O3 ({', '.join(SIZES)})")
    return FrameWorkload(match[1], objects=int(match[3]), memory_frames=int(match[2]), weights=weights)
