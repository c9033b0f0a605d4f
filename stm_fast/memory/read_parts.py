"""Reads of a memory in parts: each part is read separately, and the results are merged exactly."""

from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.memory.storage import Part, QuantizedPart
from stm_fast.ops import memory_read, merge_reads
from stm_fast.ops.inputs import requires_grad
from stm_fast.ops.quantized import memory_read_quantized


class ReadResult(NamedTuple):
    """The result of reading a part of a memory, or all of it."""

    out: Tensor  # [O, M, Cv]
    lse: Tensor  # [O, M]

    def merged(self, other: "ReadResult") -> "ReadResult":
        """Merged with the result of another part, in float32 at least, because every part would add a rounding."""
        dtype = torch.promote_types(self.out.dtype, torch.float32)
        return ReadResult(*merge_reads([self.out.to(dtype), other.out.to(dtype)], [self.lse, other.lse]))


def read_part(query: Tensor, part: Part | QuantizedPart, rows: int, backend: str) -> ReadResult:
    """Reads one part: query ``[1, M, Ck]``, `rows` memory rows per slot; `backend` applies to float rows."""
    lengths = lengths_of(part, rows)
    if isinstance(part, QuantizedPart):
        return ReadResult(*memory_read_quantized(query, part.memory, lengths=lengths, return_lse=True))
    # autograd saves the rows, but by the backward pass a page or a slot may hold others
    if requires_grad((query, part.key, part.value)):
        part = part._replace(key=part.key.clone(), value=part.value.clone())
    return read_rows(query, part, lengths, backend)


def read_rows(query: Tensor, part: Part, lengths: Tensor | None, backend: str) -> ReadResult:
    """Reads the first `lengths` [O] rows of each object of a part with float rows."""
    return ReadResult(*memory_read(query, part.key, part.value, lengths=lengths, return_lse=True, backend=backend))


def lengths_of(part: Part | QuantizedPart, rows: int) -> Tensor | None:
    """The number of valid rows of each object, int32 [O], at `rows` per slot; None if all are valid."""
    key = part.memory.key if isinstance(part, QuantizedPart) else part.key  # [O, slots, R, Ck] or [O, slots*R, Ck]
    if min(part.counts) * rows == key.shape[1:-1].numel():
        return None
    return torch.tensor([count * rows for count in part.counts], dtype=torch.int32, device=key.device)


def empty_read(query: Tensor, objects: int, value_dim: int) -> ReadResult:
    """The result of reading no rows."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = query.new_zeros(objects, query.shape[1], value_dim, dtype=dtype)
    return ReadResult(out, query.new_full(out.shape[:2], -torch.inf, dtype=dtype))


def usage_of(part_lse: Tensor, lse: Tensor) -> Tensor:
    """The softmax weight of a part, summed over the queries: ``sum_i exp(lse_part_i - lse_i)`` [O], from two [O, M].

    It is the `usage` of memory_read() summed over the part's rows, but relative to the whole memory, not to the part,
    and it needs only lse, which every backend returns.
    """
    return (part_lse - lse).exp().nan_to_num(nan=0.0).sum(1)
