"""An affinity that is never materialized: what get_affinity() returns and readout() takes."""

from typing import NamedTuple, SupportsIndex

from torch import Tensor

from stm_fast.choices import Similarity
from stm_fast.ops.functional import ReadOptions, memory_read


class Affinity(NamedTuple):
    """The inputs of an affinity, with which any number of values can be read.

    Checkpointing a function that takes one requires ``use_reentrant=False``: reentrant checkpoints do not look for
    tensors inside arguments.
    """

    query: Tensor  # [B or 1, M, Ck]
    key: Tensor  # [B or 1, N, Ck]
    similarity: Similarity
    shrinkage: Tensor | None = None  # [B or 1, N]
    selection: Tensor | None = None  # as query
    query_norm: bool = True
    top_k: SupportsIndex | None = None
    backend: str = "auto"

    def read(self, value: Tensor) -> Tensor:
        """``[B, N, Cv]`` to ``[B, M, Cv]``: the values weighted by this affinity."""
        return memory_read(self.query, self.key, value, **self._options())

    def read_with_usage(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The read, and ``[B, N]``, the weight of each memory row summed over the queries."""
        return memory_read(self.query, self.key, value, return_usage=True, **self._options())

    def _options(self) -> ReadOptions:
        return {
            "similarity": self.similarity,
            "shrinkage": self.shrinkage,
            "selection": self.selection,
            "query_norm": self.query_norm,
            "top_k": self.top_k,
            "backend": self.backend,
        }
