"""The memory reads of STM (Oh et al., ICCV 2019) and of the networks trained with it, under the names of their code."""

from torch import Tensor

from stm_fast.ops.arguments import check_tensors
from stm_fast.ops.layers import MemoryRead


class STMMemory(MemoryRead):
    """``Memory`` of the published STM, of Training-Code-of-STM and of STM-Training. It holds no weights.

    .. code-block:: python

        # STM: model.py; Training-Code-of-STM: model/model.py; STM-Training: libs/models/models.py
        from stm_fast.ops.adapters import STMMemory    # with the other imports
        self.Memory = STMMemory()                      # was: Memory()
    """

    def forward(self, m_in: Tensor, m_out: Tensor, q_in: Tensor, q_out: Tensor) -> tuple[Tensor, None]:
        """Reads the memory of each object for every pixel of the query frame.

        Args:
            m_in: memory keys ``[O, Ck, T, H, W]``, or rows ``[O, N, Ck]`` as in STM-Training.
            m_out: memory values ``[O, Cv, T, H, W]`` or ``[O, N, Cv]``, like `m_in`.
            q_in: query keys ``[O, Ck, H, W]``.
            q_out: query values ``[O, Cv, H, W]``.

        Returns:
            ``[O, 2 * Cv, H, W]``, the read followed by `q_out`; and None in place of the affinity, which is never
            materialized.

        Raises:
            TypeError, ValueError: tensors whose shapes, dtypes or devices do not match.
        """
        check_tensors(m_in=m_in, m_out=m_out)
        if m_in.ndim != m_out.ndim:
            found = f"{tuple(m_in.shape)} and {tuple(m_out.shape)}"
            raise ValueError(f"m_in, m_out: found shapes {found}, expected the same number of dimensions")
        if m_in.ndim == 3:
            m_in, m_out = m_in.mT, m_out.mT
        return super().forward(m_in, m_out, q_in, q_out)


class MaskPropagationMemoryReader(MemoryRead):
    """``MemoryReader`` of Mask-Propagation's training. It holds no weights; in its ``model/network.py``

    .. code-block:: python

        from stm_fast.ops.adapters import MaskPropagationMemoryReader    # with the other imports
        self.memory = MaskPropagationMemoryReader()                      # was: MemoryReader()

    At test time Mask-Propagation reads as MiVOS does: :class:`stm_fast.ops.adapters.MiVOSMemoryReader`.
    """

    def forward(self, mk: Tensor, mv: Tensor, qk: Tensor, qv: Tensor) -> Tensor:  # type: ignore[override]
        """Memory ``[B, Ck, T, H, W]`` and ``[B, Cv, T, H, W]``, query ``[B, Ck, H, W]`` and ``[B, Cq, H, W]``.

        Returns:
            ``[B, Cv + Cq, H, W]``, the read followed by `qv`.

        Raises:
            TypeError, ValueError: tensors whose shapes, dtypes or devices do not match.
        """
        return super().forward(mk, mv, qk, qv)[0]
