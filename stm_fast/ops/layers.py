"""The memory read as a layer, for models of the STM family."""

import torch
from torch import Tensor, nn

from stm_fast.ops.arguments import check_tensors
from stm_fast.ops.functional import memory_read


class MemoryRead(nn.Module):
    """The memory read of STM as a layer without weights, for networks of one's own.

    In place of that of the published STM it changes only a network's cost: :func:`stm_fast.adapt` puts it there.

    Args:
        backend: as in :func:`stm_fast.memory_read`.
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
            ``[B, 2 * Cv, H, W]``, the read followed by `query_value`; and None in place of the affinity that the
            published layer returns, which is never materialized.

        Raises:
            TypeError, ValueError: tensors whose shapes, dtypes or devices do not match.
        """
        check_tensors(query_value=query_value)
        key, value = rows(memory_key, "memory_key"), rows(memory_value, "memory_value")
        read = memory_read(rows(query_key, "query_key"), key, value, backend=self.backend)
        return torch.cat([feature(read, query_value.shape[2:]), query_value], dim=1), None


def rows(feature: Tensor, name: str) -> Tensor:
    """[B, C, ...] -> [B, rows, C], a view if the strides allow it.

    Raises TypeError or ValueError, with a message that begins with `name`, for anything else.
    """
    check_tensors(**{name: feature})
    if feature.ndim < 3:
        raise ValueError(f"{name}: found shape {tuple(feature.shape)}, expected [B, C, ...]")
    return feature.flatten(2).mT


def feature(read: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, rows, C] -> [B, C, *size], a view: the way back from rows()."""
    return read.mT.reshape(read.shape[0], read.shape[2], *size)
