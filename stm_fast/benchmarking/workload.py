"""What is timed: resolution x memory frames x objects x pass x dtype, and the work in it."""

from dataclasses import dataclass
from typing import get_args

import torch

from stm_fast.benchmarking.shapes import Shape
from stm_fast.choices import Pass, TimedDtype

KEY_DIM, VALUE_DIM = 128, 512  # Ck and Cv as published
TOP_K = 30  # as in XMem and Cutie
PASSES = get_args(Pass)
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(TimedDtype)}


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
