"""The memory read in plain PyTorch, with every option and dtype: the definition that every engine is tested against.

Shapes: B batch (objects), M queries, N memory rows, Ck key width, Cv value width; Bq and Bk are B or 1 (shared).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stm_fast.choices import SIMILARITIES, Similarity
from stm_fast.ops.inputs import Reader, ReadInputs, ReadResult, Tensors, accumulation_dtype, in_transform

# larger affinities are computed one block of queries at a time: 16 M float32 elements are 64 MiB
EAGER_AFFINITY_LIMIT = 2**24


def read(inputs: ReadInputs) -> ReadResult:
    """The memory read, in chunks if the affinity is large; an exported graph, which serves all sizes, has no chunks."""
    if torch.compiler.is_exporting():
        return read_eager(inputs)
    batch, queries, rows = inputs.value.shape[0], inputs.query.shape[1], inputs.key.shape[1]
    if batch * queries * rows <= EAGER_AFFINITY_LIMIT:
        return read_eager(inputs)
    return read_chunked(inputs, max(1, EAGER_AFFINITY_LIMIT // (batch * rows)))


def reader(inputs: ReadInputs) -> Reader:
    options = inputs.options

    def read_again(*tensors: *Tensors) -> ReadResult:
        return read(ReadInputs(*tensors, *options))

    return read_again


def read_eager(inputs: ReadInputs, compute_dtype: torch.dtype | None = None) -> ReadResult:
    """The memory read with the whole affinity in memory (STM section 3.2, equations 1 and 2).

    `compute_dtype` is float32 (float64 for float64 inputs) by default. With the inputs' own dtype this is what eager
    PyTorch code computes, to which stm_fast.testing compares errors.
    """
    dtype = compute_dtype or accumulation_dtype(inputs.value.dtype)
    value = valid_rows(inputs.value, inputs).to(dtype)  # [B, N, Cv]
    score = affinity_scores(inputs, dtype)  # [B, M, N]
    kept = None
    if 0 < inputs.top_k < score.shape[-1]:
        kept = largest_scores(score, inputs.top_k)
        score = score.masked_fill(~kept, -math.inf)
    affinity, lse = softmax_and_lse(score)  # [B, M, N], [B, M]
    out = (affinity @ value).to(inputs.value.dtype)  # [B, M, Cv]
    usage = affinity.detach().sum(1) if inputs.return_usage else None
    if kept is None or not inputs.return_top_k:
        return ReadResult(out, lse, usage)
    return ReadResult(out, lse, usage, *_entries(affinity, kept, inputs))


def read_chunked(inputs: ReadInputs, queries_per_chunk: int) -> ReadResult:
    """The memory read by blocks of queries: O(queries_per_chunk * N) memory, recomputed in the backward pass."""
    # torch.func has no checkpoints; without them autograd saves the affinity of every block
    recomputed = torch.is_grad_enabled() and not in_transform()
    read_block = partial(checkpoint, _read_block, use_reentrant=False) if recomputed else _read_block
    query, key, value, shrinkage, selection, lengths = inputs.tensors
    parts = []
    for start in range(0, query.shape[1], queries_per_chunk):
        block = slice(start, start + queries_per_chunk)
        chosen = None if selection is None else selection[:, block]
        # separate arguments: tensors inside a tuple would bypass the hooks of saved tensors, and with them the check
        # that they were not overwritten
        parts.append(read_block(inputs.options, query[:, block], key, value, shrinkage, chosen, lengths))

    def joined(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat(found, dim=1)

    usages = [part.usage for part in parts if part.usage is not None]
    usage = torch.stack(usages).sum(0) if usages else None
    out, lse, weights, rows = map(joined, ("out", "lse", "weights", "rows"))
    assert out is not None
    assert lse is not None
    return ReadResult(out, lse, usage, weights, rows)


def _read_block(options: Any, *tensors: *Tensors) -> ReadResult:
    return read_eager(ReadInputs(*tensors, *options))


def affinity_scores(inputs: ReadInputs, dtype: torch.dtype) -> Tensor:
    """The scores S [B, M, N] before the softmax, computed in `dtype`; -inf in rows beyond `lengths`."""
    query = inputs.query.to(dtype)  # [Bq, M, Ck]
    key = valid_rows(inputs.key, inputs).to(dtype)  # [B or Bk, N, Ck]
    score = _SCORES[SIMILARITIES[inputs.similarity]](query, key, inputs) * inputs.scale
    if inputs.lengths is not None:
        score = score.masked_fill(~_valid(inputs)[:, None, :], -math.inf)
    return score.expand(inputs.value.shape[0], -1, -1)  # [B, M, N]


def _product(query: Tensor, key: Tensor, _inputs: ReadInputs) -> Tensor:
    """<q_i, k_j> (STM section 3.2) [B, M, N]."""
    return query @ key.mT


def _negative_distance(query: Tensor, key: Tensor, inputs: ReadInputs) -> Tensor:
    """-shrinkage_j * sum_c selection_ic (q_ic - k_jc)^2 as three matrix products (XMem equation 2) [B, M, N]."""
    if inputs.selection is None:
        score = 2 * (query @ key.mT) - key.square().sum(-1)[:, None, :]
        query_term = query.square().sum(-1)  # [Bq, M]
    else:
        selection = inputs.selection.to(query.dtype)  # [Bq, M, Ck]
        score = 2 * ((query * selection) @ key.mT) - selection @ key.square().mT
        query_term = (query.square() * selection).sum(-1)
    if inputs.query_norm:
        score = score - query_term[:, :, None]
    if inputs.shrinkage is not None:
        score = score * valid_rows(inputs.shrinkage, inputs)[:, None, :].to(score.dtype)
    return score


# the scores by similarity, without their scale
_SCORES: dict[Similarity, Callable[[Tensor, Tensor, ReadInputs], Tensor]] = {"dot": _product, "l2": _negative_distance}


def softmax_and_lse(score: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimension and its natural-log normalizer; an empty row gives 0 and -inf, never NaN."""
    if score.shape[-1] == 0:
        return score, score.sum(-1) - math.inf
    largest = score.detach().amax(-1, keepdim=True)  # [B, M, 1]
    largest = largest.masked_fill(largest == -math.inf, 0)
    weight = (score - largest).exp()
    total = weight.sum(-1, keepdim=True)  # [B, M, 1]
    empty = total == 0
    total = total.masked_fill(empty, 1)
    lse = (largest + total.log()).masked_fill(empty, -math.inf)
    return weight / total, lse.squeeze(-1)


def largest_scores(score: Tensor, count: int) -> Tensor:
    """True at the `count` largest scores of each row; among equal scores the lower index wins [B, M, N]."""
    threshold = score.detach().topk(count, dim=-1).values[..., -1:]
    above, equal = ~(score <= threshold), score == threshold  # NaN counts as the largest
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def _entries(affinity: Tensor, kept: Tensor, inputs: ReadInputs) -> tuple[Tensor, Tensor]:
    """The kept weights of an affinity and their rows, [B, M, k] each, ascending by row; 0 and -1 where fewer count."""
    count = inputs.key.shape[1]
    if inputs.lengths is not None:
        kept = kept & _valid(inputs)[:, None, :]
    index = torch.arange(count, device=kept.device).masked_fill(~kept, count)  # [B, M, N]
    rows = index.topk(inputs.top_k, dim=-1, largest=False, sorted=True).values
    absent = rows == count
    weights = affinity.gather(-1, rows.masked_fill(absent, 0)).masked_fill(absent, 0)
    return weights, rows.masked_fill(absent, -1)


def kept_weights(inputs: ReadInputs, rows: Tensor) -> Tensor:
    """The softmax weights [B, M, k] of the rows [B, M, k] that a top-k read kept, differentiable in every input.

    Each query becomes a read of its own, of a memory that is its k rows.
    """
    objects = rows.shape[0]
    if inputs.shares_affinity:
        rows = rows[:1]
    batch, queries, count = rows.shape

    def of_queries(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.expand(batch, -1, -1).reshape(batch * queries, 1, tensor.shape[2])

    def of_rows(tensor: Tensor) -> Tensor:
        width, index = tensor.shape[2], rows.clamp(min=0).reshape(batch, queries * count, 1)
        gathered = tensor.expand(batch, -1, -1).gather(1, index.expand(-1, -1, width))
        return gathered.reshape(batch * queries, count, width)

    query, key = of_queries(inputs.query), of_rows(inputs.key)
    assert query is not None
    shrinkage = None if inputs.shrinkage is None else of_rows(inputs.shrinkage[..., None]).squeeze(-1)
    lengths = (rows >= 0).sum(-1).flatten()
    tensors = query, key, key[..., :0], shrinkage, of_queries(inputs.selection), lengths
    weights = _affinity(ReadInputs(*tensors, *inputs.options)).view(batch, queries, count)
    return weights.expand(objects, -1, -1).contiguous()


def all_entries(inputs: ReadInputs) -> dict[str, Tensor]:
    """The weights and rows [B, M, N] of a read that keeps every row."""
    weights = _affinity(inputs)
    rows = torch.arange(inputs.key.shape[1], device=inputs.key.device)
    if inputs.lengths is not None:
        rows = rows.where(_valid(inputs), -1)[:, None]  # [B, 1, N]
    return {"weights": weights, "rows": rows.expand(weights.shape).contiguous()}


def _affinity(inputs: ReadInputs) -> Tensor:
    """The affinity [B, M, N] of a dense read."""
    return softmax_and_lse(affinity_scores(inputs, accumulation_dtype(inputs.value.dtype)))[0]


def _valid(inputs: ReadInputs) -> Tensor:
    """True where a memory row counts [B, N]."""
    assert inputs.lengths is not None
    return torch.arange(inputs.key.shape[1], device=inputs.key.device) < inputs.lengths[:, None]


def valid_rows(rows: Tensor, inputs: ReadInputs) -> Tensor:
    """The rows, with zeros beyond `lengths`, where spare capacity may hold anything, even NaN."""
    if inputs.lengths is None:
        return rows
    valid = _valid(inputs)  # [B, N]
    return torch.where(valid if rows.ndim == 2 else valid[:, :, None], rows, 0)
