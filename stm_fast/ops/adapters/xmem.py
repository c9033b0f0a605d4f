"""The memory read of XMem (Cheng and Schwing, ECCV 2022, equation 2), which its whole family shares.

XMem, Cutie, DEVA, XMem++, Track-Anything and MatAnyone call four functions, in training and at test time. To import
them from here is the only change: similarity and affinity stay lazy through the slices, concatenations and picks of
their memory managers, and are never materialized.

.. code-block:: python

    # XMem, XMem++, Track-Anything: model/network.py, inference/memory_manager.py
    # Cutie: cutie/model/cutie.py, cutie/inference/memory_manager.py
    # DEVA: deva/model/network.py, deva/inference/memory_manager.py, deva/inference/consensus_associated.py
    # MatAnyone: matanyone/model/matanyone.py, matanyone/inference/memory_manager.py
    from stm_fast.ops.adapters import do_softmax, get_affinity, get_similarity, readout   # was: from ...

The published code exponentiates the `top_k` scores without subtracting the largest, and needs ``top_k <= N``; here
nothing underflows to 0 / 0, and all rows are read where there are fewer than `top_k`.
"""

from typing import Literal, SupportsIndex, TypedDict, Unpack, overload

from torch import Tensor

from stm_fast.ops.adapters.affinity import Affinity, Scores
from stm_fast.ops.arguments import check_flags, check_tensors
from stm_fast.ops.functional import memory_read
from stm_fast.ops.layers import feature, rows


def get_similarity(
    mk: Tensor,
    ms: Tensor | None,
    qk: Tensor,
    qe: Tensor | None,
    add_batch_dim: bool = False,
    uncert_mask: Tensor | None = None,
    *,
    query_norm: bool | None = None,
    backend: str = "auto",
) -> Scores:
    """The scores ``[B, N, M]``, lazily; ``similarity.dense()`` is the tensor.

    Args:
        mk: memory keys ``[B, Ck, ...]``.
        ms: shrinkage ``[B, 1, ...]``, with the dimensions of `mk`; 1 when None.
        qk: query keys ``[B, Ck, ...]``.
        qe: selection, with the shape of `qk`; 1 when None.
        add_batch_dim: the tensors have no batch dimension (DEVA).
        uncert_mask: factor ``[B, 1, ...]`` of `qk` and `qe`, which must be given (MatAnyone).
        query_norm: whether the scores have their ``q^2`` term. None is as published: only with a selection, although
            the term does not cancel if there is shrinkage. True is equation 2.
        backend: as in :func:`stm_fast.memory_read`.

    Raises:
        TypeError, ValueError: tensors whose shapes do not match.
    """
    check_tensors(("ms", "qe", "uncert_mask"), mk=mk, ms=ms, qk=qk, qe=qe, uncert_mask=uncert_mask)
    check_flags(add_batch_dim=add_batch_dim)
    if add_batch_dim:
        mk, qk = mk[None], qk[None]
        ms, qe = None if ms is None else ms[None], None if qe is None else qe[None]
    key, query = rows(mk, "mk"), rows(qk, "qk")  # [B, N, Ck], [B, M, Ck]
    shrinkage = None if ms is None else ms.flatten(1)  # [B, N]
    selection = None if qe is None else rows(qe, "qe")  # [B, M, Ck]
    if query.shape[2] != key.shape[2] or (query.shape[0] != key.shape[0] and 1 not in (query.shape[0], key.shape[0])):
        raise ValueError(f"qk: found shape {tuple(qk.shape)}, expected batch and width of mk's {tuple(mk.shape)}")
    if shrinkage is not None and shrinkage.shape != key.shape[:2]:
        raise ValueError(f"ms: found {tuple(shrinkage.shape)} elements, expected {tuple(key.shape[:2])} like mk")
    if selection is not None and selection.shape != query.shape:
        raise ValueError(f"qe: found shape {tuple(selection.mT.shape)}, expected {tuple(query.mT.shape)} like qk")
    if uncert_mask is not None:
        if selection is None:
            raise ValueError("uncert_mask: found without qe, expected with a selection")
        mask = rows(uncert_mask, "uncert_mask")  # [B, M, 1]
        query, selection = query * mask, selection * mask
    return Scores(
        query,
        key,
        "l2",
        shrinkage,
        selection,
        qe is not None if query_norm is None else query_norm,
        backend,
    )


@overload
def do_softmax(
    similarity: Scores,
    top_k: SupportsIndex | None = ...,
    inplace: bool = ...,
    return_usage: Literal[False] = ...,
) -> Affinity: ...


@overload
def do_softmax(
    similarity: Scores,
    top_k: SupportsIndex | None = ...,
    inplace: bool = ...,
    *,
    return_usage: Literal[True],
) -> tuple[Affinity, Tensor]: ...


def do_softmax(
    similarity: Scores,
    top_k: SupportsIndex | None = None,
    inplace: bool = False,
    return_usage: bool = False,
) -> Affinity | tuple[Affinity, Tensor]:
    """The affinity ``[B, N, M]``, lazily; ``affinity.dense()`` is the tensor.

    Args:
        similarity: what :func:`get_similarity` returns, or parts of it.
        top_k: softmax over only the k largest scores of each query.
        inplace: ignored, because nothing is materialized.
        return_usage: also return the usage ``[B, N]`` that decides which rows long-term memory keeps.

    Raises:
        TypeError: a similarity that :func:`get_similarity` did not make.
    """
    if not isinstance(similarity, Scores):
        found = type(similarity).__name__
        raise TypeError(f"similarity: found {found}, expected what get_similarity() of stm_fast returns")
    check_flags(return_usage=return_usage)
    affinity = similarity.softmax(top_k)
    return (affinity, affinity.usage()) if return_usage else affinity


def get_affinity(
    mk: Tensor,
    ms: Tensor | None,
    qk: Tensor,
    qe: Tensor | None,
    uncert_mask: Tensor | None = None,
    *,
    query_norm: bool | None = None,
    top_k: SupportsIndex | None = None,
    backend: str = "auto",
) -> Affinity:
    """The affinity as it is computed in training: :func:`do_softmax` of :func:`get_similarity`."""
    scores = get_similarity(mk, ms, qk, qe, uncert_mask=uncert_mask, query_norm=query_norm, backend=backend)
    return do_softmax(scores, top_k)


def readout(affinity: Affinity, mv: Tensor, uncert_mask: Tensor | None = None) -> Tensor:
    """Memory values ``[B, Cv, T, H, W]``, of one or of several objects side by side, to ``[B, Cv, H, W]``.

    `uncert_mask` ``[B, 1, H, W]`` is a factor of the result (MatAnyone).
    """
    check_tensors(("uncert_mask",), uncert_mask=uncert_mask)
    read = affinity.read(rows(mv, "mv"))  # [B, H * W, Cv]
    if uncert_mask is not None:
        read = read * rows(uncert_mask, "uncert_mask")
    return feature(read, mv.shape[3:])


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
    """The read at test time in one call: one affinity for the values of a group of objects, read once.

    Args:
        mk: ``[1, Ck, N]``; `ms`: ``[1, 1, N]``; `qk` and `qe`: ``[1, Ck, M]`` or ``[1, Ck, H, W]``.
        mv: ``[O, Cv, N]``, the values of each object.
        return_usage: also return the usage ``[1, N]`` that decides which rows long-term memory keeps.
        query_norm: as in :func:`get_similarity`.

    Returns:
        ``[O, Cv, M]``, and the usage if requested.
    """
    check_flags(return_usage=return_usage)
    scores = get_similarity(mk, ms, qk, qe, query_norm=query_norm, backend=backend)
    options = scores.options(top_k)
    read = memory_read(scores.query, scores.key, rows(mv, "mv"), return_usage=return_usage, **options)
    if isinstance(read, Tensor):
        return read.mT
    out, usage = read
    return out.mT, usage[: mk.shape[0]]  # all objects share one affinity
