"""A read of a memory that comes in parts: each part is read by itself, and the reads are joined exactly."""

from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.memory.storage import Part, QuantisedPart
from stm_fast.ops import memory_read, merge_reads
from stm_fast.ops.inputs import requires_grad
from stm_fast.ops.quantised import memory_read_quantised


class Reading(NamedTuple):
    """What a query found in some part of a memory, or in all of it."""

    out: Tensor  # [O, M, Cv]
    lse: Tensor  # [O, M]

    def joined(self, other: "Reading") -> "Reading":
        """With the reading of another part; sums in float32 at least, because every part would add a rounding."""
        dtype = torch.promote_types(self.out.dtype, torch.float32)
        return Reading(*merge_reads([self.out.to(dtype), other.out.to(dtype)], [self.lse, other.lse]))


def read_part(query: Tensor, part: Part | QuantisedPart, rows: int, backend: str) -> Reading:
    """Reads one part: query ``[1, M, Ck]``, `rows` memory rows a slot; `backend` for rows that are floats."""
    if isinstance(part, QuantisedPart):
        lengths = _lengths(part.counts, part.memory.key.shape[1], rows, query.device)
        return Reading(*memory_read_quantised(query, part.memory, lengths=lengths, return_lse=True))
    # autograd keeps what was read, and by the backward pass a page or a slot may hold other rows
    if requires_grad((query, part.key, part.value)):
        part = part._replace(key=part.key.clone(), value=part.value.clone())
    return read_rows(query, part, lengths_of(part, rows), backend)


def read_rows(query: Tensor, part: Part, lengths: Tensor | None, backend: str) -> Reading:
    """Reads the first `lengths` [O] rows of each object of a part whose rows are floats."""
    return Reading(*memory_read(query, part.key, part.value, lengths=lengths, return_lse=True, backend=backend))


def lengths_of(part: Part, rows: int) -> Tensor | None:
    """How many rows of each object count [O], of `rows` a slot; None where all do."""
    return _lengths(part.counts, part.key.shape[1] // rows, rows, part.key.device)


def _lengths(counts: list[int], slots: int, rows: int, device: torch.device) -> Tensor | None:
    """How many rows of each object count [O], of so many slots; None where all do."""
    if min(counts) == slots:
        return None
    return torch.tensor([count * rows for count in counts], dtype=torch.int32, device=device)


def nothing_read(query: Tensor, objects: int, value_dim: int) -> Reading:
    """The reading of no rows at all."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = query.new_zeros(objects, query.shape[1], value_dim, dtype=dtype)
    return Reading(out, query.new_full(out.shape[:2], -torch.inf, dtype=dtype))


def usage_of(part_lse: Tensor, lse: Tensor) -> Tensor:
    """The softmax weight of a part, summed over the queries: ``sum_i exp(lse_part_i - lse_i)`` [O], from two [O, M].

    It is the `usage` that memory_read() can return, summed over the part's rows. But lse is all it needs, which every
    backend has, and it is right in the whole memory and not in the part alone.
    """
    return (part_lse - lse).exp().nan_to_num(nan=0.0).sum(1)
