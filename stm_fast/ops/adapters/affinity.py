"""An affinity that is never made: what code written as get_affinity() and readout() passes between the two."""

from typing import NamedTuple, SupportsIndex

from torch import Tensor

from stm_fast.ops.functional import memory_read
from stm_fast.ops.inputs import Similarity


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
        return self._read(value, return_usage=False)[0]

    def read_with_usage(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The read, and ``[B, N]``: how much all the queries together made of each memory row."""
        out, usage = self._read(value, return_usage=True)
        return out, usage

    def _read(self, value: Tensor, return_usage: bool) -> tuple[Tensor, ...]:
        result = memory_read(
            self.query,
            self.key,
            value,
            similarity=self.similarity,
            shrinkage=self.shrinkage,
            selection=self.selection,
            query_norm=self.query_norm,
            top_k=self.top_k,
            return_usage=return_usage,
            backend=self.backend,
        )
        return (result,) if isinstance(result, Tensor) else result
