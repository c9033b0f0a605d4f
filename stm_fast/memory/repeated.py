"""Reads that repeat, replayed from a CUDA graph: the host gives one command in place of a launch for each kernel."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.memory.reading import Reading, lengths_of, read_part, read_rows
from stm_fast.memory.storage import Part, QuantisedPart

# a capture takes the time of some tens of reads: a memory that grows every few frames is not to come to it
CAPTURED_AFTER = 8
MOST_GRAPHS = 2


class _Captured(NamedTuple):
    """A graph and what it reads and writes."""

    graph: torch.cuda.CUDAGraph
    query: Tensor
    lengths: Tensor | None
    reading: Reading


@dataclass
class _Repeated:
    count: int = 0
    captured: _Captured | None = None


class RepeatedReads:
    """Reads parts on a GPU, without gradients, and captures the reads that come again and again.

    A full memory has two of them, with the previous frame and, where that one stays, without: so many graphs there
    are, each of which keeps the memory of one read. A graph reads addresses: what the rows and the query hold may
    change from one replay to the next, and nothing else.
    """

    def __init__(self) -> None:
        self._reads: dict[Hashable, _Repeated] = {}  # the latest last

    def read(self, query: Tensor, part: Part | QuantisedPart, rows: int, backend: str) -> Reading:
        """As read_part()."""
        if isinstance(part, QuantisedPart) or torch.cuda.is_current_stream_capturing():
            return read_part(query, part, rows, backend)
        addresses = part.key.data_ptr(), part.value.data_ptr()
        forms = (*map(_form, (query, part.key, part.value)),)
        repeated = self._repeated((forms, addresses, (*part.counts,), rows, backend))
        if repeated.count <= CAPTURED_AFTER:
            return read_part(query, part, rows, backend)
        if repeated.captured is None:
            repeated.captured = _captured(query, part, rows, backend)
        repeated.captured.query.copy_(query)
        repeated.captured.graph.replay()
        return Reading(*(result.clone() for result in repeated.captured.reading))  # the next replay writes over them

    def _repeated(self, purpose: Hashable) -> _Repeated:
        repeated = self._reads.pop(purpose, None) or _Repeated()
        repeated.count += 1
        self._reads[purpose] = repeated
        if len(self._reads) > MOST_GRAPHS:
            del self._reads[next(iter(self._reads))]
        return repeated


def _form(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _captured(query: Tensor, part: Part, rows: int, backend: str) -> _Captured:
    graph, graph_query, lengths = torch.cuda.CUDAGraph(), torch.empty_like(query), lengths_of(part, rows)
    # other threads may decode frames meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        reading = read_rows(graph_query, part, lengths, backend)
    return _Captured(graph, graph_query, lengths, reading)
