"""The memory read of MiVOS (Cheng et al., CVPR 2021): STM's, over the top_k rows of each query."""

from typing import SupportsIndex

from torch import Tensor, nn

from stm_fast.ops.functional import memory_read
from stm_fast.ops.kernelized import kernelized_memory_read
from stm_fast.ops.layers import feature, rows


class MiVOSMemoryReader(nn.Module):
    """``EvalMemoryReader`` of MiVOS and Mask-Propagation, which holds no weights.

    .. code-block:: python

        # MiVOS: model/propagation/prop_net.py; Mask-Propagation: model/eval_network.py
        from stm_fast.ops.adapters import MiVOSMemoryReader       # with the other imports
        self.memory = MiVOSMemoryReader(top_k, km=km)             # was: EvalMemoryReader(top_k, km=km)

    ``segment_with_query`` may keep its loop over objects, or pass all keys and values at once. The published code needs
    ``top_k <= N``, and fails if both options are None and if it reads several objects at once; this read does not.

    Args:
        top_k: rows read per query; None reads all.
        km: the standard deviation of KMN's Gaussian around the best query of each memory row, in pixels of the
            features; None: no Gaussian.
    """

    def __init__(self, top_k: SupportsIndex | None = 50, km: float | None = None, backend: str = "auto") -> None:
        super().__init__()
        self.top_k = top_k
        self.km = km
        self.backend = backend

    def forward(self, mk: Tensor, mv: Tensor, qk: Tensor) -> Tensor:
        """Keys ``[O, Ck, T, H, W]`` and values ``[O, Cv, T, H, W]`` of each object, one query ``[1, Ck, H, W]``.

        Returns:
            ``[O, Cv, H, W]``.

        Raises:
            TypeError, ValueError: tensors whose shapes, dtypes or devices do not match, or a `km` that is not positive.
        """
        tensors, size = (rows(qk, "qk"), rows(mk, "mk"), rows(mv, "mv")), qk.shape[2:]
        if self.km is None:
            return feature(memory_read(*tensors, top_k=self.top_k, backend=self.backend), size)
        read = kernelized_memory_read(*tensors, sigma=self.km, size=size, top_k=self.top_k, backend=self.backend)
        assert isinstance(read, Tensor)
        return feature(read, size)
