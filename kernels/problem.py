"""One memory read as the kernels see it."""

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import Tensor

from stm_fast.kernels.configs import is_regular
from stm_fast.kernels.operands import Form, Operands, Strides, steps
from stm_fast.kernels.plans import layout_of
from stm_fast.kernels.similarity import has_key_term, score_factor
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
    similarity: int  # of similarity.py
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
    def of_scores(self) -> "Problem":
        """The same, for what depends on the affinity alone: with one object if all objects share it."""
        tensors = (self.query, self.key, self.shrinkage, self.selection)
        shared = self.lengths is None and all(tensor is None or tensor.shape[0] == 1 for tensor in tensors)
        return self._replace(value=self.value[:1]) if shared else self

    @property
    def score_factor(self) -> float:
        """What raw scores are multiplied by."""
        return score_factor(self.similarity, self.scale)

    @property
    def base_2(self) -> bool:
        """Whether a kernel may take its scores as logarithms to the base 2, with LOG2E in the factor.

        A power of 2 is one instruction where one of e is six, but a float32 score would be rounded once more.
        """
        return self.arithmetic == "half"

    @property
    def form(self) -> Form:
        """What its kernels are compiled with."""
        precision = "ieee" if self.arithmetic == "half" else self.arithmetic
        key_dim, key_term = self.query.shape[2], has_key_term(self.similarity)
        return Form(key_dim, int(self.similarity), key_term, precision, self.base_2)

    @property
    def tensors(self) -> Operands:
        """The tensors as every kernel takes them."""
        return Operands(self.query, self.key, self.value, self.shrinkage, self.selection, self.lengths, self.norms)

    @property
    def layout(self) -> Hashable:
        """All that decides how it is read, the numbers in its tensors apart."""
        options = self.scale, self.similarity, self.target, self.arithmetic, table_in_use()
        return *map(layout_of, self.tensors), options

    def score_arguments(self) -> dict[str, Any]:
        """The kernel arguments that every score depends on."""
        return self.product_arguments() | {"score_factor": self.score_factor}

    def product_arguments(self) -> dict[str, Any]:
        """Those of kernels that multiply operands with scores, or gradients of them, that others have made."""
        strides = Strides(
            steps(self.query),
            steps(self.key),
            steps(self.value),
            *(None if tensor is None else steps(tensor) for tensor in (self.shrinkage, self.selection, self.norms)),
        )
        sizes = {"M": self.query.shape[1], "N": self.key.shape[1]}
        return {"operands": self.tensors, "strides": strides, **sizes, "FORM": self.form}


def has_rows(tensor: Tensor) -> bool:
    """Whether [B, N, C] has contiguous rows that start at multiples of 16 bytes, in a way that Triton can tell.

    It knows whether a pointer is such a multiple, and whether a stride is one of 16 elements.
    """
    return (
        (tensor.stride(2) == 1 or tensor.shape[2] == 1)
        and all(stride % 16 == 0 for stride in steps(tensor)[:-1])
        and tensor.data_ptr() % 16 == 0
    )
