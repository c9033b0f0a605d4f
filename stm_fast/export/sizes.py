"""The sizes that vary between calls of an exported part, and the shapes that are made of them."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.export import Dim


@dataclass(frozen=True)
class Size:
    """A size that varies; ``16 * HEIGHT`` is a multiple of one.

    Attributes:
        name: in the record, and in an ONNX file.
        least, most: the range for which a part is exported.
        example: the size with which it is traced, which must not be special in any way.
        factor: how many times the size.
    """

    name: str
    least: int
    most: int
    example: int
    factor: int = 1

    def __rmul__(self, factor: int) -> "Size":
        return replace(self, factor=factor * self.factor)

    def __str__(self) -> str:
        return self.name if self.factor == 1 else f"{self.factor}*{self.name}"


# text describes a size of a result, such as "1+objects"
Shape = tuple[Size | int | str, ...]

FRAMES = Size("frames", 1, 2**10, 2)
OBJECTS = Size("objects", 1, 255, 3)
# in pixels of keys; PyTorch's convolutions distinguish a side of one pixel
HEIGHT, WIDTH = Size("height", 2, 2**10, 4), Size("width", 2, 2**10, 5)
QUERIES, ROWS = Size("queries", 1, 2**24, 6), Size("rows", 1, 2**24, 7)
SIZES = (FRAMES, OBJECTS, HEIGHT, WIDTH, QUERIES, ROWS)


def described(shape: Shape) -> list[int | str]:
    """The shape for the record, as in ``["objects", 96, "height", "width"]``."""
    return [size if isinstance(size, int) else str(size) for size in shape]


def example(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """A tensor with which a part is traced."""
    return torch.rand([size.factor * size.example if isinstance(size, Size) else int(size) for size in shape]).to(dtype)


def varying(shape: Shape) -> dict[int, Size]:
    """The sizes that vary, by dimension."""
    return {index: size for index, size in enumerate(shape) if isinstance(size, Size)}


@cache
def dimension(size: Size) -> Any:
    """The size for `torch.export.export`: equal sizes are the same object."""
    if size.factor > 1:
        return size.factor * dimension(replace(size, factor=1))
    return Dim(size.name, min=size.least, max=size.most)
