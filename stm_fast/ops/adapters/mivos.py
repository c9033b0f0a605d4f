"""The memory read of MiVOS (Cheng et al., CVPR 2021): STM's, over the top_k rows of each query."""

from typing import SupportsIndex

from torch import Tensor, nn

from stm_fast.ops.functional import memory_read
from stm_fast.ops.layers import feature, rows


class MiVOSMemoryReader(nn.Module):
    """``EvalMemoryReader`` of MiVOS and Mask-Propagation, which holds no weights; in their ``prop_net.py``

    .. code-block:: python

        from stm_fast.ops.adapters import MiVOSMemoryReader       # with the other imports
        self.memory = MiVOSMemoryReader(top_k, km=None)           # was: EvalMemoryReader(top_k, km=None)

    ``segment_with_query`` may keep its loop over objects, or pass all keys and values at once.

    Args:
        top_k: rows read per query; None reads all.
        km: only None. Elsewhere, the width of KMN's Gaussian kernel around each row's best query, which would have to
            be known before the read.

    Raises:
        ValueError: `km` is not None.
    """

    def __init__(self, top_k: SupportsIndex | None = 50, km: float | None = None, backend: str = "auto") -> None:
        super().__init__()
        if km is not None:
            raise ValueError(f"km: found {km}, expected None: the memory read has no Gaussian kernel")
        self.top_k = top_k
        self.backend = backend

    def forward(self, mk: Tensor, mv: Tensor, qk: Tensor) -> Tensor:
        """Keys ``[O, Ck, T, H, W]`` and values ``[O, Cv, T, H, W]`` of each object, one query ``[1, Ck, H, W]``.

        Returns:
            ``[O, Cv, H, W]``.
        """
        read = memory_read(rows(qk, "qk"), rows(mk, "mk"), rows(mv, "mv"), top_k=self.top_k, backend=self.backend)
        return feature(read, qk.shape[2:])
