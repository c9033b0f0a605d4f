"""The memory read as users of the STM family write it today, in plain PyTorch.

Each function takes query [1, M, Ck], key [O, N, Ck] and value [O, N, Cv], and gives out [O, M, Cv].
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stm_fast.benchmarking.workload import TOP_K

QUERIES_PER_CHUNK = 128


def published(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Matrix product, division, softmax over the memory, matrix product (STM section 3.2, equations 1 and 2)."""
    score = key @ query.mT / math.sqrt(query.shape[2])  # [O, N, M]
    affinity = torch.softmax(score, dim=1)
    return (value.mT @ affinity).mT


def published_top_k(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The k largest scores of each query put back into a dense affinity of zeros, as XMem and Cutie read."""
    score = key @ query.mT / math.sqrt(query.shape[2])  # [O, N, M]
    largest, index = score.topk(min(TOP_K, key.shape[1]), dim=1)  # [O, k, M]
    affinity = torch.zeros_like(score).scatter_(1, index, torch.softmax(largest, dim=1))
    return (value.mT @ affinity).mT


def last_dim(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The affinity the other way round: its softmax runs along memory, and in place where no gradient is wanted."""
    score = (query / math.sqrt(query.shape[2])) @ key.mT  # [O, M, N]
    if torch.is_grad_enabled():
        return torch.softmax(score, dim=-1) @ value
    torch.softmax(score, dim=-1, out=score)
    return score @ value


def last_dim_top_k(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The k largest scores of each query, and a weighted sum of those k rows of value alone."""
    score = (query / math.sqrt(query.shape[2])) @ key.mT  # [O, M, N]
    largest, index = score.topk(min(TOP_K, key.shape[1]), dim=-1)  # [O, M, k]
    weight = torch.softmax(largest, dim=-1)
    # one object at a time: the rows picked are k/T times as large as the values
    reads = [torch.einsum("mk,mkc->mc", w, v[i]) for w, v, i in zip(weight, value, index, strict=True)]
    return torch.stack(reads)


def chunks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A Python loop over blocks of queries: what people write when the affinity does not fit."""
    return torch.cat([last_dim(block, key, value) for block in _blocks(query)], dim=1)


def chunks_top_k(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same loop, with the k largest scores alone."""
    return torch.cat([last_dim_top_k(block, key, value) for block in _blocks(query)], dim=1)


def _blocks(query: Tensor) -> Iterator[Tensor]:
    return (query[:, start : start + QUERIES_PER_CHUNK] for start in range(0, query.shape[1], QUERIES_PER_CHUNK))
