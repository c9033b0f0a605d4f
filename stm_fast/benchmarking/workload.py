"""What is timed: resolution x memory frames x objects x pass x dtype, and the work in it."""

import re
from dataclasses import dataclass

import torch

from stm_fast.errors import InputError

KEY_DIM, VALUE_DIM = 128, 512  # Ck and Cv as published
TOP_K = 30  # as in XMem and Cutie
PASSES = ("forward", "backward", "top-k")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# the feature map [h, w] of a frame at stride 16, after padding to a multiple of 16
FEATURE_MAPS = {"480p": (30, 54), "720p": (45, 80), "1080p": (68, 120)}
GRID_FRAMES, GRID_OBJECTS = (1, 5, 20, 100, 1000), (1, 3, 10)


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


def parse_shape(text: str) -> Shape:
    """The shape of a name: 480p-T20-O3, 8x14-T1-O1 (a feature map of 8 x 14) or M48-N32400-O1.

    Raises InputError for any other text.
    """
    match = re.fullmatch(r"(?:(\d+p|\d+x\d+)-T(\d+)|M(\d+)-N(\d+))-O(\d+)", text)
    sizes = [int(size) for size in re.findall(r"\d+", text)]
    if match is None or 0 in sizes or (match[1] and match[1].endswith("p") and match[1] not in FEATURE_MAPS):
        known = ", ".join(FEATURE_MAPS)
        raise InputError(
            f"shape: found {text!r}, expected for example 480p-T20-O3 ({known}), 8x14-T1-O1 or M48-N32400-O1"
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
class Workload:
    """One pass over one shape in one dtype on one kind of device."""

    shape: Shape
    dtype: torch.dtype
    pass_name: str  # one of PASSES
    device: str  # "cpu" or "cuda"

    @property
    def flop(self) -> int:
        """Of the matrix products that the pass cannot do without; softmax and selection are not counted.

        Forward: scores and weighted sum, 2 (Ck + Cv) a pair of query and memory row. Backward: the scores again, then
        the gradients of affinity, value, query and key: 2 (3 Ck + 2 Cv), whatever a route has saved. Top-k: all scores,
        and the weighted sum of k rows a query.
        """
        pairs = self.shape.affinity_elements
        if self.pass_name == "forward":
            return 2 * pairs * (KEY_DIM + VALUE_DIM)
        if self.pass_name == "backward":
            return 2 * pairs * (3 * KEY_DIM + 2 * VALUE_DIM)
        return 2 * pairs * KEY_DIM + 2 * self.shape.objects * self.shape.queries * self._selected * VALUE_DIM

    @property
    def bytes(self) -> int:
        """The least that has to be read and written: every input once, every result once."""
        return self.bytes_with(self.dtype.itemsize)

    def bytes_with(self, memory_itemsize: int) -> int:
        """The same for a memory of numbers of so many bytes; scales, few beside them, are not counted."""
        shape = self.shape
        query, out = shape.queries * KEY_DIM, shape.objects * shape.queries * VALUE_DIM
        key, value = shape.objects * shape.rows * KEY_DIM, shape.objects * shape.rows * VALUE_DIM
        if self.pass_name == "top-k":
            value = shape.objects * min(shape.rows, shape.queries * self._selected) * VALUE_DIM
        once = (query + out) * self.dtype.itemsize + (key + value) * memory_itemsize
        # the backward reads inputs, out and its gradient, and writes a gradient for each input
        return 2 * once if self.pass_name == "backward" else once

    @property
    def input_bytes(self) -> int:
        """Of query, key and value."""
        return (self.shape.queries * KEY_DIM + self.memory_elements) * self.dtype.itemsize

    @property
    def memory_elements(self) -> int:
        """Of keys and values."""
        return self.shape.objects * self.shape.rows * (KEY_DIM + VALUE_DIM)

    @property
    def affinity_bytes(self) -> int:
        """Of one affinity in this dtype."""
        return self.shape.affinity_elements * self.dtype.itemsize

    @property
    def _selected(self) -> int:
        return min(TOP_K, self.shape.rows)


def dtype_name(dtype: torch.dtype) -> str:
    """float32 and not torch.float32."""
    return str(dtype).removeprefix("torch.")
