"""The test cases of the memory read, which every backend must pass, and their random inputs."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm_fast.choices import SIMILARITIES, Similarity
from stm_fast.ops.inputs import ReadInputs


@dataclass(frozen=True)
class ReadCase:
    """The shapes and options of one memory read."""

    batch: int = 2
    queries: int = 33
    rows: int = 97
    key_dim: int = 16
    value_dim: int = 32
    shared_query: bool = False
    shared_key: bool = False
    shared_shrinkage: bool | None = None  # None: as shared_key
    lengths: tuple[int, ...] | None = None
    poison: float = math.nan  # the content of rows beyond lengths
    similarity: Similarity = "dot"
    shrinkage: bool = False
    selection: bool = False
    query_norm: bool = True
    top_k: int | None = None
    return_usage: bool = False
    spread: float = 1.0  # factor of the keys: 1 gives a soft read, 100 an almost hard one, 0 equal scores
    channels_first: bool = False  # views of [B, C, rows], the layout of networks

    def __str__(self) -> str:
        chosen = {field: getattr(self, field.name) for field in fields(self)}
        named = (f"{field.name}={value}" for field, value in chosen.items() if value is not field.default)
        return "-".join(named) or "default"


class Tensors(NamedTuple):
    """The differentiable inputs of a memory read."""

    query: Tensor  # [B or 1, M, Ck]
    key: Tensor  # [B or 1, N, Ck]
    value: Tensor  # [B, N, Cv]
    shrinkage: Tensor | None  # [B or 1, N]
    selection: Tensor | None  # as query


_SHAPES = (
    ReadCase(),
    ReadCase(batch=1, queries=1, rows=1),
    ReadCase(queries=1, rows=130),
    ReadCase(queries=65, rows=1),
    ReadCase(batch=1, queries=49, rows=150, key_dim=128, value_dim=512),
    ReadCase(key_dim=17, value_dim=9),
    ReadCase(key_dim=1, value_dim=1),
    ReadCase(shared_query=True),
    ReadCase(shared_key=True),
    ReadCase(lengths=(97, 40)),
    ReadCase(lengths=(0, 96)),
    ReadCase(lengths=(1, 33), poison=math.inf),
    ReadCase(lengths=(40, 97), shared_key=True, shared_query=True),
    ReadCase(lengths=(20, 60), shared_key=True),
    ReadCase(spread=100.0),
    ReadCase(spread=0.0),
    ReadCase(channels_first=True),
    ReadCase(queries=0),
    ReadCase(rows=0),
    ReadCase(batch=0),
    ReadCase(value_dim=0),
)

_OPTIONS: tuple[dict[str, Any], ...] = (
    {"return_usage": True},
    *({"similarity": similarity} for similarity in SIMILARITIES[1:]),
    {"similarity": "l2", "shrinkage": True, "return_usage": True},
    {"similarity": "l2", "shrinkage": True, "query_norm": False},
    {"similarity": "l2", "selection": True},
    {"similarity": "l2", "shrinkage": True, "selection": True},
    {"top_k": 7, "return_usage": True},
    {"similarity": "l2", "shrinkage": True, "selection": True, "top_k": 30, "return_usage": True},
)

# every shape without options and with each of the last two sets of options; the other sets with the default shape
CASES: tuple[ReadCase, ...] = (
    *_SHAPES,
    *(replace(_SHAPES[0], **chosen) for chosen in _OPTIONS),
    *(replace(shape, **chosen) for shape in _SHAPES[1:] for chosen in _OPTIONS[-2:]),
    ReadCase(similarity="l2", shrinkage=True, selection=True, shared_key=True, shared_shrinkage=False),
    ReadCase(similarity="l2", shrinkage=True, shared_shrinkage=True, lengths=(50, 90)),
    ReadCase(top_k=1),
    ReadCase(top_k=97),
    ReadCase(top_k=200, rows=5),
    ReadCase(top_k=7, lengths=(3, 97), return_usage=True),
)


def make_tensors(case: ReadCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Tensors:
    """Random inputs of a case, with its poison in every row beyond its lengths, where it must not matter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(batch: int, rows: int, width: int) -> Tensor:
        if case.channels_first:
            return torch.randn(batch, width, rows, generator=generator).mT
        return torch.randn(batch, rows, width, generator=generator)

    query_batch, key_batch = 1 if case.shared_query else case.batch, 1 if case.shared_key else case.batch
    shared_shrinkage = case.shared_key if case.shared_shrinkage is None else case.shared_shrinkage
    shrinkage_batch = 1 if shared_shrinkage else case.batch
    query = normal(query_batch, case.queries, case.key_dim)
    key = normal(key_batch, case.rows, case.key_dim) * case.spread
    value = normal(case.batch, case.rows, case.value_dim)
    shrinkage = 1 + torch.rand(shrinkage_batch, case.rows, generator=generator) if case.shrinkage else None
    selection = torch.rand(query_batch, case.queries, case.key_dim, generator=generator) if case.selection else None
    if case.lengths is not None:
        spare = torch.arange(case.rows) >= torch.tensor(case.lengths)[:, None]  # [B, N]
        for rows in (key, value, shrinkage):
            if rows is not None:
                rows[spare if rows.shape[0] == case.batch else spare.all(0, keepdim=True)] = case.poison
    moved = [None if t is None else t.to(device, dtype) for t in (query, key, value, shrinkage, selection)]
    return Tensors(*moved)  # type: ignore[arg-type]


def leaves(tensors: Tensors, dtype: torch.dtype, requires_grad: bool) -> Tensors:
    """The same numbers and strides in `dtype`, as leaves of a new autograd graph."""
    new = [None if t is None else t.detach().to(dtype).requires_grad_(requires_grad) for t in tensors]
    return Tensors(*new)  # type: ignore[arg-type]


def options(case: ReadCase, device: str = "cpu") -> dict[str, Any]:
    """The keyword arguments of memory_read(), without differentiable tensors and return_..."""
    lengths = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int32, device=device)
    return {
        "similarity": case.similarity,
        "query_norm": case.query_norm,
        "lengths": lengths,
        "top_k": case.top_k,
    }


def read_inputs(case: ReadCase, tensors: Tensors) -> ReadInputs:
    """What memory_read() would pass to a backend, with all tensors in their own dtype."""
    query, key, value, shrinkage, selection = tensors
    return ReadInputs(
        query,
        key,
        value,
        shrinkage,
        selection,
        options(case, query.device.type)["lengths"],
        1 / math.sqrt(case.key_dim),
        SIMILARITIES.index(case.similarity),
        case.query_norm,
        0 if case.top_k is None or case.top_k >= case.rows else case.top_k,
        case.return_usage,
    )
