"""memory_read() and merge_reads(): the entry points to all engines."""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Literal, SupportsFloat, SupportsIndex, TypedDict, Unpack, overload

import torch
from torch import Tensor

from stm_fast.arguments import shown
from stm_fast.choices import SIMILARITIES, Similarity
from stm_fast.ops import backends, known_calls
from stm_fast.ops.arguments import as_scale, as_top_k, check_flags, check_scale, check_tensors
from stm_fast.ops.inputs import ReadInputs, Tensors, accumulation_dtype, in_transform, is_autocast, without_autocast
from stm_fast.ops.reference import all_entries
from stm_fast.torch_private import is_fake

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.int32, torch.int64)


class ReadOptions(TypedDict, total=False):
    """The options of memory_read() that do not change the form of its result."""

    scale: SupportsFloat | None
    similarity: Similarity
    shrinkage: Tensor | None
    selection: Tensor | None
    query_norm: bool
    lengths: Tensor | None
    top_k: SupportsIndex | None
    backend: str


@overload
def memory_read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_lse: Literal[False] = ...,
    return_usage: Literal[False] = ...,
    return_top_k: Literal[False] = ...,
    **options: Unpack[ReadOptions],
) -> Tensor: ...


@overload
def memory_read(
    query: Tensor, key: Tensor, value: Tensor, *, return_lse: Literal[True], **options: Unpack[ReadOptions]
) -> tuple[Tensor, Tensor]: ...


@overload
def memory_read(
    query: Tensor, key: Tensor, value: Tensor, *, return_usage: Literal[True], **options: Unpack[ReadOptions]
) -> tuple[Tensor, Tensor]: ...


@overload
def memory_read(
    query: Tensor, key: Tensor, value: Tensor, *, return_top_k: Literal[True], **options: Unpack[ReadOptions]
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def memory_read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_lse: bool = ...,
    return_usage: bool = ...,
    return_top_k: bool = ...,
    **options: Unpack[ReadOptions],
) -> Tensor | tuple[Tensor, ...]: ...


def memory_read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: SupportsFloat | None = None,
    similarity: Similarity = "dot",
    shrinkage: Tensor | None = None,
    selection: Tensor | None = None,
    query_norm: bool = True,
    lengths: Tensor | None = None,
    top_k: SupportsIndex | None = None,
    return_lse: bool = False,
    return_usage: bool = False,
    return_top_k: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """Reads a space-time memory: ``out_i = sum_j softmax_j(S_ij) value_j``, without materializing the affinity.

    The read of STM (Oh et al., ICCV 2019, equations 1 and 2) with the options of the models derived from it. The batch
    index is the object. Sums are accumulated in float32 (float64 for float64 inputs). Differentiable in `query`, `key`,
    `value`, `shrinkage` and `selection`.

    Args:
        query: ``[B, M, Ck]``, M = H*W pixels of the current frame. A batch of 1 is one query for all objects.
        key: ``[B, N, Ck]``, N = T*H*W memory rows. A batch of 1 is one affinity for all objects (STCN, XMem).
        value: ``[B, N, Cv]``. All three share dtype and device; any strides. "triton" copies a long memory whose rows
            are not contiguous and aligned, for the duration of the call.
        scale: factor of the scores: a finite number of Python, NumPy or a CPU tensor without dimensions and gradient;
            default ``1 / sqrt(Ck)``.
        similarity: ``"dot"``: ``S_ij = scale * <q_i, k_j>`` (STM, MiVOS, AOT, SAM 2).
            ``"l2"``: ``S_ij = -scale * shrinkage_j * sum_c selection_ic (q_ic - k_jc)^2`` (STCN; XMem equation 2).
        shrinkage: ``[B or 1, N]``, for "l2" only; 1 when None.
        selection: ``[B or 1, M, Ck]``, for "l2" only, batch as `query`; 1 when None.
        query_norm: False leaves the ``q^2`` term out of "l2". Without shrinkage it cancels in the softmax; XMem
            without selection leaves it out although it has shrinkage.
        lengths: ``[B]`` integers: only the first ``lengths[b]`` memory rows of object b count; the others may hold
            anything. Values outside 0..N raise on the CPU; on a GPU they are clamped, because checking them would
            stall the stream. Length 0 gives out 0 and lse -inf.
        top_k: softmax over only the k largest scores of each query, exact; of equal scores the lower index is taken;
            k >= N is the dense read. An integer of the same sources as `scale`.
        return_lse: also return lse ``[B, M]``, the natural log of the softmax normalizer, for merge_reads().
        return_usage: also return usage ``[B, N]``, the softmax weights summed over the queries (not differentiable).
        return_top_k: also return the softmax weights that `top_k` kept and their memory rows, for read_rows(), each
            ``[B, M, min(k, N)]`` and ascending by row; 0 and -1 where fewer rows count. The weights are differentiable,
            the rows are int64.
        backend: "auto" picks the fastest that supports the inputs; "triton", "cpp" or "reference" requires that one. On
            Hopper "triton" has an experimental kernel for 16-bit "dot" reads with Ck up to 128 and Cv 512.

    Returns:
        out ``[B, M, Cv]`` in the dtype of value, followed by lse, usage, weights and rows as requested (float32, or
        float64). A value without channels, ``[B, N, 0]``, gives these alone.

    Raises:
        TypeError, ValueError: arguments whose dtypes, devices or shapes do not match, before any kernel runs.
        NotImplementedError: a named backend that cannot run these inputs, with its reasons.
    """
    # known calls are looked up by plain numbers
    if scale is not None and type(scale) is not float:
        scale = as_scale(scale)
    if top_k is not None and type(top_k) is not int:
        top_k = as_top_k(top_k)
    tensors = query, key, value, shrinkage, selection, lengths
    options = scale, top_k, similarity, query_norm, return_lse, return_usage, return_top_k, backend
    call, reader = (None, None) if torch.compiler.is_compiling() else known_calls.find(tensors, *options)
    if reader is not None:
        if lengths is not None:
            _check_counts(lengths, key.shape[1])
        return _requested(return_lse, *reader(*tensors))
    inputs = _checked(tensors, *options[:-1])
    chosen = backends.choose(backend, inputs, backends.BACKENDS)
    with without_autocast(query.device):
        result = chosen.read(inputs)
        keeps_all = return_top_k and not inputs.top_k
        if keeps_all:
            result = result._replace(**all_entries(inputs))
    # a reader gets the tensors unconverted
    if call is not None and not keeps_all and all(map(operator.is_, inputs.tensors, tensors)):
        known_calls.remember(call, inputs, chosen)
    return _requested(return_lse, *result)


def _requested(
    return_lse: bool, out: Tensor, lse: Tensor | None, *others: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    found = [tensor for tensor in (lse if return_lse else None, *others) if tensor is not None]
    return (out, *found) if found else out


def _checked(
    tensors: Tensors,
    scale: float | None,
    top_k: int | None,
    similarity: Similarity,
    query_norm: bool,
    return_lse: bool,
    return_usage: bool,
    return_top_k: bool,
) -> ReadInputs:
    """The arguments of memory_read(), checked and converted for the backends; raises what memory_read() does."""
    query, key, value, shrinkage, selection, lengths = tensors
    optional = {"shrinkage": shrinkage, "selection": selection, "lengths": lengths}
    check_tensors(optional, query=query, key=key, value=value, **optional)
    check_flags(query_norm=query_norm, return_lse=return_lse, return_usage=return_usage, return_top_k=return_top_k)
    if return_top_k and top_k is None:
        raise ValueError("return_top_k: found True without top_k, expected a top_k")
    query, key, value = cast_for_autocast(query, key, value)
    check_read_tensors(query, key, value)
    check_scale(scale, query.dtype)
    _check_options(tensors, similarity, top_k)
    dtype, rows = accumulation_dtype(query.dtype), key.shape[1]
    return ReadInputs(
        query,
        key,
        value,
        None if shrinkage is None else shrinkage.to(dtype),
        None if selection is None else selection.to(dtype),
        int32_lengths(lengths, rows),
        1 / math.sqrt(query.shape[2]) if scale is None else scale,
        SIMILARITIES.index(similarity),
        bool(query_norm),
        0 if top_k is None or top_k >= rows else top_k,
        bool(return_usage),
        bool(return_top_k) and top_k is not None and top_k < rows,
        bool(return_lse),
    )


def merge_reads(outs: Iterable[Tensor], lses: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Merges reads of disjoint parts of a memory exactly into the read of the whole. Differentiable.

    Args:
        outs: each ``[B, M, Cv]``, from ``memory_read(..., return_lse=True)`` over one part.
        lses: each ``[B, M]``, float32 or float64.

    Returns:
        out ``[B, M, Cv]`` in the dtype of the outs, and lse ``[B, M]``.

    Raises:
        TypeError, ValueError: parts whose number, shapes, dtypes or devices do not match.
    """
    outs, lses = _parts(outs, "outs"), _parts(lses, "lses")
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs, lses: found {len(outs)} and {len(lses)}, expected the same number, at least one")
    for out, lse in zip(outs, lses, strict=True):
        check_tensors(outs=out, lses=lse)
        if out.ndim != 3 or out.shape != outs[0].shape or lse.shape != out.shape[:2]:
            found = f"{tuple(out.shape)} and {tuple(lse.shape)}"
            raise ValueError(f"outs, lses: found {found}, expected [B, M, Cv] and [B, M], the same for all parts")
        if out.dtype not in FLOATS or out.dtype != outs[0].dtype or lse.dtype != accumulation_dtype(out.dtype):
            found = f"{out.dtype} and {lse.dtype}"
            raise TypeError(f"outs, lses: found {found}, expected one dtype for outs, and lses as from memory_read")
        if out.device != outs[0].device or lse.device != out.device:
            raise ValueError(f"outs, lses: found on {out.device} and {lse.device}, expected one device for all")
    stacked = torch.stack(lses)  # [parts, B, M]
    largest = stacked.detach().amax(0)
    largest = largest.masked_fill(largest == -math.inf, 0)
    weight = (stacked - largest).exp()  # [parts, B, M]
    total = weight.sum(0)  # [B, M]
    empty = total == 0
    total = total.masked_fill(empty, 1)
    share = (weight / total)[..., None]  # [parts, B, M, 1]
    out = (share * torch.stack(outs)).sum(0)  # [B, M, Cv]
    return out.to(outs[0].dtype), (largest + total.log()).masked_fill(empty, -math.inf)


def _parts(tensors: Iterable[Tensor], name: str) -> list[Tensor]:
    if not isinstance(tensors, Iterable):
        raise TypeError(f"{name}: found {type(tensors).__name__}, expected tensors")
    return list(tensors)


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, the tensors in its dtype, as for PyTorch's own attention; float64 is not changed."""
    device = tensors[0].device.type
    if not is_autocast(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t.dtype in (torch.float16, torch.bfloat16, torch.float32) else t for t in tensors)


def int32_lengths(lengths: Tensor | None, rows: int) -> Tensor | None:
    """Lengths as int32, which the backends take; any number above `rows` means all rows."""
    if lengths is None or lengths.dtype == torch.int32:
        return lengths
    return lengths.clamp(0, rows).to(torch.int32)


def check_read_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raises TypeError or ValueError for dtypes, devices or shapes that memory_read() does not take."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 3:
            raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected 3 dimensions")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name}: found {tensor.dtype}, expected one of {', '.join(map(str, FLOATS))}")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name}: found {tensor.dtype}, expected {query.dtype} like query")
        if tensor.device != query.device:
            raise ValueError(f"{name}: found on {tensor.device}, expected on {query.device} like query")
    (query_batch, _, width), (key_batch, rows, key_width) = query.shape, key.shape
    batch, value_rows, _ = value.shape
    if width != key_width or width == 0:
        shapes = _shapes(query, key, value)
        raise ValueError(f"key: width differs from query's or is 0: {shapes}, expected [B, M, Ck] and [B, N, Ck]")
    if rows != value_rows:
        shapes = _shapes(query, key, value)
        raise ValueError(f"value: number of rows differs from key's: {shapes}, expected [B, N, Ck] and [B, N, Cv]")
    for name, found in (("query", query_batch), ("key", key_batch)):
        if found not in (batch, 1):  # in this order: an exported graph must not distinguish a batch of 1
            raise ValueError(f"{name}: batch is neither 1 nor value's: {_shapes(query, key, value)}")


def _shapes(query: Tensor, key: Tensor, value: Tensor) -> str:
    return f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"


def _check_options(tensors: Tensors, similarity: str, top_k: int | None) -> None:
    query, key, value, shrinkage, selection, lengths = tensors
    if not isinstance(similarity, str) or similarity not in SIMILARITIES:
        expected = " or ".join(f'"{name}"' for name in SIMILARITIES)
        raise ValueError(f"similarity: found {shown(similarity)}, expected {expected}")
    if similarity != "l2" and (shrinkage is not None or selection is not None):
        name = "shrinkage" if shrinkage is not None else "selection"
        raise ValueError(f'{name}: given with similarity "{similarity}", expected with "l2" only')
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: found {top_k}, expected at least 1")
    if shrinkage is not None:
        _check_option("shrinkage", shrinkage, query, ((1, key.shape[1]), (value.shape[0], key.shape[1])))
    if selection is not None:
        _check_option("selection", selection, query, (tuple(query.shape),))
    if lengths is not None:
        _check_lengths(lengths, query, value)


def _check_option(name: str, tensor: Tensor, query: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: found {tensor.dtype}, expected a floating point dtype")
    if tensor.device != query.device:
        raise ValueError(f"{name}: found on {tensor.device}, expected on {query.device} like query")
    if tuple(tensor.shape) not in shapes:
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected {' or '.join(map(str, shapes))}")


def _check_lengths(lengths: Tensor, query: Tensor, value: Tensor) -> None:
    if lengths.dtype not in COUNTS:
        raise TypeError(f"lengths: found {lengths.dtype}, expected torch.int32 or torch.int64")
    if lengths.device != query.device:
        raise ValueError(f"lengths: found on {lengths.device}, expected on {query.device} like query")
    if tuple(lengths.shape) != (value.shape[0],):
        raise ValueError(f"lengths: found shape {tuple(lengths.shape)}, expected ({value.shape[0]},) for the batch")
    # graphs, transforms and fake tensors cannot look at values; the kernels clamp them
    if not (torch.compiler.is_compiling() or in_transform() or is_fake(lengths)):
        _check_counts(lengths, value.shape[1])


def _check_counts(lengths: Tensor, rows: int) -> None:
    if lengths.device.type == "cpu" and lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= rows:
        raise ValueError(f"lengths: found {lengths.tolist()}, expected values from 0 to {rows}")
