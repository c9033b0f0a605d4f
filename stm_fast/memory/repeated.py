"""Repeated reads, replayed from a CUDA graph: the host issues one command instead of one launch per kernel."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.memory.read_parts import ReadResult, lengths_of, read_part, read_rows
from stm_fast.memory.storage import Part, QuantizedPart

# a capture takes as long as tens of reads, so a memory that grows every few frames should not trigger one
CAPTURED_AFTER = 8
MAX_GRAPHS = 2


class _Captured(NamedTuple):
    """A graph with its inputs and outputs."""

    graph: torch.cuda.CUDAGraph
    query: Tensor
    lengths: Tensor | None
    result: ReadResult


@dataclass
class _Repeated:
    count: int = 0
    captured: _Captured | None = None


class RepeatedReads:
    """Reads parts on a GPU, without gradients, and captures reads that repeat.

    A full memory is read in two forms: with the previous frame and, if that one is kept permanently, without. Hence two
    graphs, each of which holds the memory of one read. A graph reads fixed addresses: the contents of the rows and the
    query may change from one replay to the next, but nothing else.
    """

    def __init__(self) -> None:
        self._reads: dict[Hashable, _Repeated] = {}  # the latest last

    def read(self, query: Tensor, part: Part | QuantizedPart, rows: int, backend: str) -> ReadResult:
        """Like read_part()."""
        if isinstance(part, QuantizedPart) or torch.cuda.is_current_stream_capturing():
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
        # the next replay overwrites the results
        return ReadResult(*(tensor.clone() for tensor in repeated.captured.result))

    def _repeated(self, signature: Hashable) -> _Repeated:
        repeated = self._reads.pop(signature, None) or _Repeated()
        repeated.count += 1
        self._reads[signature] = repeated
        if len(self._reads) > MAX_GRAPHS:
            del self._reads[next(iter(self._reads))]
        return repeated


def _form(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _captured(query: Tensor, part: Part, rows: int, backend: str) -> _Captured:
    graph, graph_query, lengths = torch.cuda.CUDAGraph(), torch.empty_like(query), lengths_of(part, rows)
    # other threads may be decoding frames
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = read_rows(graph_query, part, lengths, backend)
    return _Captured(graph, graph_query, lengths, result)
