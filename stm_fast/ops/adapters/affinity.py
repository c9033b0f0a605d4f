"""An affinity that is never made: what code written as get_affinity() and readout() passes between the two."""

from typing import NamedTuple, SupportsIndex

from torch import Tensor

from stm_fast.choices import Similarity
from stm_fast.ops.functional import ReadOptions, memory_read


class Affinity(NamedTuple):
    """The keys whose affinity a read needs. One may be read with any number of values.

    A function that is given one may be checkpointed with ``use_reentrant=False``: a reentrant checkpoint looks for
    tensors among its arguments, not inside them.
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
        """The read, and ``[B, N]``: how much all the queries together made of each memory row."""
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
