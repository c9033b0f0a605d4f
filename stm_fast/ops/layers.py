"""The memory read as a layer, for models of the STM family."""

import torch
from torch import Tensor, nn

from stm_fast.ops.functional import memory_read


class MemoryRead(nn.Module):
    """The memory read of STM as a layer. It holds no weights: assigned to ``Memory`` it changes a network's cost alone.

    .. code-block:: python

        from stm_fast import MemoryRead
        model.Memory = MemoryRead()   # model: the published STM, also inside a DataParallel as model.module.Memory

    Args:
        backend: as in :func:`stm_fast.ops.memory_read`.
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self, memory_key: Tensor, memory_value: Tensor, query_key: Tensor, query_value: Tensor
    ) -> tuple[Tensor, None]:
        """Reads the memory for every pixel of the query frame (STM section 3.2).

        Args:
            memory_key: ``[B, Ck, T, H, W]``; T, H and W need not be those of the query.
            memory_value: ``[B, Cv, T, H, W]``.
            query_key: ``[B, Ck, H, W]``.
            query_value: ``[B, Cv, H, W]``.

        Returns:
            ``[B, 2 * Cv, H, W]``, the read followed by `query_value`, and None where the published layer returns its
            affinity, which is never made here.
        """
        read = memory_read(rows(query_key), rows(memory_key), rows(memory_value), backend=self.backend)
        assert isinstance(read, Tensor)
        return torch.cat([feature(read, query_value.shape[2:]), query_value], dim=1), None


def rows(feature: Tensor) -> Tensor:
    """[B, C, ...] -> [B, rows, C], a view wherever the strides allow."""
    return feature.flatten(2).mT


def feature(read: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, rows, C] -> [B, C, *size], a view: the way back from rows()."""
    return read.mT.reshape(read.shape[0], read.shape[2], *size)
