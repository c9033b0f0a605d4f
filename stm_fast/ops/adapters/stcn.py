"""The memory read of STCN (Cheng et al., NeurIPS 2021): negative squared L2, one affinity for all objects."""

from typing import SupportsIndex

import torch
from torch import Tensor, nn

from stm_fast.ops.adapters.affinity import Affinity
from stm_fast.ops.functional import memory_read
from stm_fast.ops.layers import feature, rows


class STCNMemoryReader(nn.Module):
    """STCN's ``MemoryReader`` of training. It holds no weights; in ``model/network.py`` of STCN:

    .. code-block:: python

        from stm_fast.ops.adapters import STCNMemoryReader   # with the other imports
        self.memory = STCNMemoryReader()                     # was: MemoryReader()

    What `get_affinity` returns is only passed to `readout`, so nothing else changes.
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def get_affinity(self, mk: Tensor, qk: Tensor) -> Affinity:
        """Of memory keys ``[B, Ck, T, H, W]`` and query keys ``[B, Ck, H, W]``."""
        return Affinity(rows(qk, "qk"), rows(mk, "mk"), "l2", backend=self.backend)

    def readout(self, affinity: Affinity, mv: Tensor, qv: Tensor) -> Tensor:
        """Memory values ``[B, Cv, T, H, W]`` read, then `qv` ``[B, Cq, H, W]``: ``[B, Cv + Cq, H, W]``."""
        return torch.cat([feature(affinity.read(rows(mv, "mv")), qv.shape[2:]), qv], dim=1)


def stcn_read(mk: Tensor, qk: Tensor, mv: Tensor, *, top_k: SupportsIndex | None = 20, backend: str = "auto") -> Tensor:
    """STCN's read at test time: in ``MemoryBank.match_memory`` of its ``inference_memory_bank.py``

    .. code-block:: python

        from stm_fast.ops.adapters import stcn_read              # with the other imports
        readout_mem = stcn_read(mk, qk, mv, top_k=self.top_k)    # was: affinity = ..., readout_mem = ...

    The published code exponentiates scores without subtracting the largest, and needs ``top_k <= N``; this read does
    not overflow and reads all rows where there are fewer than `top_k`.

    Args:
        mk: ``[1, Ck, N]``, the keys of all objects.
        qk: ``[1, Ck, M]``.
        mv: ``[O, Cv, N]``, the values of each object.

    Returns:
        ``[O, Cv, M]``.
    """
    query, key, value = rows(qk, "qk"), rows(mk, "mk"), rows(mv, "mv")
    return memory_read(query, key, value, similarity="l2", top_k=top_k, backend=backend).mT
