"""The memory read of XMem (Cheng and Schwing, ECCV 2022, equation 2), which Cutie and DEVA share."""

from typing import Literal, SupportsIndex, TypedDict, Unpack, overload

from torch import Tensor

from stm_fast.ops.adapters.affinity import Affinity
from stm_fast.ops.arguments import check_flags, check_tensors
from stm_fast.ops.layers import feature, rows


def get_affinity(
    mk: Tensor,
    ms: Tensor | None,
    qk: Tensor,
    qe: Tensor | None,
    *,
    query_norm: bool | None = None,
    top_k: SupportsIndex | None = None,
    backend: str = "auto",
) -> Affinity:
    """The input of `readout`: a drop-in replacement for the function of that name, as it is called in training.

    .. code-block:: python

        # XMem: model/network.py, was: from model.memory_util import ...
        # Cutie: cutie/model/cutie.py, was: from cutie.model.utils.memory_utils import ...
        # DEVA: deva/model/network.py, was: from deva.model.memory_utils import ...
        from stm_fast.ops.adapters import get_affinity, readout

    Args:
        mk: memory keys ``[B, Ck, ...]``.
        ms: shrinkage ``[B, 1, ...]``, with the dimensions of `mk`; 1 when None.
        qk: query keys ``[B, Ck, ...]``.
        qe: selection, with the shape of `qk`; 1 when None.
        query_norm: whether the scores have their ``q^2`` term. None is as published: only with a selection, although
            the term does not cancel if there is shrinkage. True is equation 2.
    """
    check_tensors(("ms",), ms=ms)
    return Affinity(
        rows(qk, "qk"),
        rows(mk, "mk"),
        "l2",
        shrinkage=None if ms is None else ms.flatten(1),
        selection=None if qe is None else rows(qe, "qe"),
        query_norm=qe is not None if query_norm is None else query_norm,
        top_k=top_k,
        backend=backend,
    )


def readout(affinity: Affinity, mv: Tensor) -> Tensor:
    """Memory values ``[B, Cv, T, H, W]``, of one or of several objects side by side, to ``[B, Cv, H, W]``."""
    return feature(affinity.read(rows(mv, "mv")), mv.shape[3:])


class _Options(TypedDict, total=False):
    top_k: SupportsIndex | None
    query_norm: bool | None
    backend: str


@overload
def xmem_read(
    mk: Tensor,
    ms: Tensor | None,
    qk: Tensor,
    qe: Tensor | None,
    mv: Tensor,
    *,
    return_usage: Literal[False] = ...,
    **options: Unpack[_Options],
) -> Tensor: ...


@overload
def xmem_read(
    mk: Tensor,
    ms: Tensor | None,
    qk: Tensor,
    qe: Tensor | None,
    mv: Tensor,
    *,
    return_usage: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...


def xmem_read(
    mk: Tensor,
    ms: Tensor | None,
    qk: Tensor,
    qe: Tensor | None,
    mv: Tensor,
    *,
    top_k: SupportsIndex | None = 30,
    return_usage: bool = False,
    query_norm: bool | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The read at test time, for the ``MemoryManager`` of XMem, Cutie and DEVA: one group of objects.

    .. code-block:: python

        from stm_fast.ops.adapters import xmem_read   # with the other imports
        # was: similarity = get_similarity(...); affinity, usage = do_softmax(similarity, ...); v @ affinity
        memory, usage = xmem_read(mk, ms, qk, qe, v, top_k=self.top_k, return_usage=True)

    A later group of objects, which has only the last n rows, is a read of ``mk[..., -n:]`` and ``ms[..., -n:]``.
    The published code exponentiates the `top_k` scores without subtracting the largest, and needs ``top_k <= N``;
    this read does not underflow to 0 / 0, and reads all rows where there are fewer than `top_k`.

    Args:
        mk: ``[1, Ck, N]``; `ms`: ``[1, 1, N]``; `qk` and `qe`: ``[1, Ck, M]`` or ``[1, Ck, H, W]``.
        mv: ``[O, Cv, N]``, the values of each object.
        return_usage: also return the usage ``[1, N]`` that decides which rows long-term memory keeps.
        query_norm: as in :func:`get_affinity`.

    Returns:
        ``[O, Cv, M]``, and the usage if requested.
    """
    check_flags(return_usage=return_usage)
    affinity = get_affinity(mk, ms, qk, qe, query_norm=query_norm, top_k=top_k, backend=backend)
    if not return_usage:
        return affinity.read(rows(mv, "mv")).mT
    out, usage = affinity.read_with_usage(rows(mv, "mv"))
    return out.mT, usage[: mk.shape[0]]  # all objects share one affinity
