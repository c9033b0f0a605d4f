"""One memory read as the kernels see it."""

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import Tensor

from stm_fast.kernels.configs import is_regular
from stm_fast.kernels.plans import layout_of
from stm_fast.kernels.targets import Target
from stm_fast.kernels.tiles import Arithmetic, Choice
from stm_fast.kernels.tuned import table_in_use

LOG2E = math.log2(math.e)


class Problem(NamedTuple):
    """The tensors and options of a memory read; Bq and Bk are B or 1 (shared by all objects)."""

    query: Tensor  # [Bq, M, Ck]
    key: Tensor  # [Bk, N, Ck]
    value: Tensor  # [B, N, Cv]
    shrinkage: Tensor | None  # [B or 1, N] float32
    selection: Tensor | None  # [Bq, M, Ck] float32
    lengths: Tensor | None  # [B] int32, clamped to 0..N
    scale: float
    l2: bool
    norms: Tensor | None  # [Bq, M] float32, contiguous: half_norms() where the l2 score has its query term
    target: Target
    arithmetic: Arithmetic

    @property
    def regular(self) -> bool:
        """Whether rows are contiguous and aligned, and of widths that tiles are made for."""
        rows = all(has_rows(tensor) for tensor in (self.query, self.key, self.value))
        return rows and is_regular(self.key.shape[2], self.value.shape[2])

    @property
    def choice(self) -> Choice:
        """What its tiles are chosen by."""
        widths = self.key.shape[2], self.value.shape[2]
        return Choice(self.target.architecture, self.arithmetic, *widths, self.regular, self.selection is not None)

    @property
    def score_factor(self) -> float:
        """What raw scores are multiplied by."""
        return 2 * self.scale if self.l2 else self.scale

    @property
    def base_2(self) -> bool:
        """Whether a kernel may take its scores as logarithms to the base 2, with LOG2E in the factor.

        A power of 2 is one instruction where one of e is six, but a float32 score would be rounded once more.
        """
        return self.arithmetic == "half"

    @property
    def precision(self) -> str:
        """What tl.dot is told."""
        return "ieee" if self.arithmetic == "half" else self.arithmetic

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors in the order in which every kernel takes them."""
        return self.query, self.key, self.value, self.shrinkage, self.selection, self.lengths, self.norms

    @property
    def layout(self) -> Hashable:
        """All that decides how it is read, the numbers in its tensors apart."""
        options = self.scale, self.l2, self.target, self.arithmetic, table_in_use()
        return *map(layout_of, self.tensors), options

    def score_arguments(self) -> dict[str, Any]:
        """The kernel arguments that every score depends on."""
        batch = self.value.shape[0]
        selection = None if self.selection is None else self.selection.expand(batch, -1, -1)
        shrinkage = None if self.shrinkage is None else self.shrinkage.expand(batch, -1)
        return {
            "query": self.query,
            "key": self.key,
            "shrinkage": self.shrinkage,
            "selection": self.selection,
            "lengths": self.lengths,
            "norms": self.norms,
            "M": self.query.shape[1],
            "N": self.key.shape[1],
            "score_factor": self.score_factor,
            **strides("query", self.query.expand(batch, -1, -1), "bmc"),
            **strides("key", self.key.expand(batch, -1, -1), "bnc"),
            **strides("shrinkage", shrinkage, "bn"),
            **strides("selection", selection, "bmc"),
            "stride_norms_b": 0 if self.norms is None else self.norms.expand(batch, -1).stride(0),
            "CK": self.query.shape[2],
            "L2": self.l2,
            "PRECISION": self.precision,
        }

    def value_arguments(self) -> dict[str, Any]:
        """The kernel arguments that describe the values."""
        return {"value": self.value, **strides("value", self.value, "bnc"), "CV": self.value.shape[2]}


def half_norms(query: Tensor, selection: Tensor | None) -> Tensor:
    """<e_i, q_i^2> / 2 [Bq, M] float32, e the selection: the query term of the raw l2 score."""
    square = query.float().square()
    return 0.5 * (square if selection is None else square * selection).sum(-1)


def has_rows(tensor: Tensor) -> bool:
    """Whether [B, N, C] has contiguous rows that start at multiples of 16 bytes, in a way that Triton can tell.

    It knows whether a pointer is such a multiple, and whether a stride is one of 16 elements.
    """
    return (
        (tensor.stride(2) == 1 or tensor.shape[2] == 1)
        and all(stride % 16 == 0 for stride in steps(tensor)[:-1])
        and tensor.data_ptr() % 16 == 0
    )


def steps(tensor: Tensor) -> list[int]:
    """The strides, 0 where there is no step to take: PyTorch leaves those of dimensions of one element as they come."""
    return [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def strides(name: str, tensor: Tensor | None, dimensions: str) -> dict[str, int]:
    """The strides of a tensor as kernel arguments stride_<name>_<dimension>; all 0 for an absent tensor."""
    found = [0] * len(dimensions) if tensor is None else steps(tensor)
    return {f"stride_{name}_{dimension}": stride for dimension, stride in zip(dimensions, found, strict=True)}
