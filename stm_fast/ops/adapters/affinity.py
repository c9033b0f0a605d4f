"""Scores and affinities that are never materialized: what get_similarity(), do_softmax() and get_affinity() return."""

import math
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, ClassVar, NoReturn, Self, SupportsIndex

import torch
from torch import Tensor
from torch.overrides import resolve_name

from stm_fast.choices import SIMILARITIES, Similarity
from stm_fast.ops.arguments import as_top_k
from stm_fast.ops.functional import ReadOptions, memory_read
from stm_fast.ops.inputs import ReadInputs, accumulation_dtype
from stm_fast.ops.kept_rows import read_rows
from stm_fast.ops.reference import affinity_scores


class LazyProduct:
    """Queries and memory rows in place of the matrix ``[B, N, M]`` that a peer's code makes of them.

    Its tensors are detached where gradients are off, as the matrix would be. Operations that are not defined here raise
    TypeError (missing attributes AttributeError), with their name.
    """

    _dense: ClassVar[str]  # how its users get a tensor

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        similarity: Similarity,
        shrinkage: Tensor | None = None,
        selection: Tensor | None = None,
        query_norm: bool = True,
        backend: str = "auto",
    ) -> None:
        self.query = _recorded(query)  # [B or 1, M, Ck]
        self.key = _recorded(key)  # [B or 1, N, Ck]
        self.similarity = similarity
        self.shrinkage = None if shrinkage is None else _recorded(shrinkage)  # [B or 1, N]
        self.selection = None if selection is None else _recorded(selection)  # as query
        self.query_norm = query_norm
        self.backend = backend
        self._versions = self._current_versions()

    @property
    def shape(self) -> torch.Size:
        """``[B, N, M]``."""
        batch = max(self.query.shape[0], self.key.shape[0])
        return torch.Size((batch, self.key.shape[1], self.query.shape[1]))

    @property
    def ndim(self) -> int:
        return 3

    @property
    def dtype(self) -> torch.dtype:
        return self.query.dtype

    @property
    def device(self) -> torch.device:
        return self.query.device

    def options(self, top_k: SupportsIndex | None = None) -> ReadOptions:
        """The options of a memory_read() of its tensors."""
        return {
            "top_k": top_k,
            "similarity": self.similarity,
            "shrinkage": self.shrinkage,
            "selection": self.selection,
            "query_norm": self.query_norm,
            "backend": self.backend,
        }

    def _dense_scores(self) -> Tensor:
        """The scores in the accumulation dtype [B, N, M]."""
        self._check_unchanged()
        inputs = ReadInputs(
            query=self.query,
            key=self.key,
            value=self._no_value(),
            shrinkage=self.shrinkage,
            selection=self.selection,
            lengths=None,
            scale=1 / math.sqrt(self.query.shape[2]),
            similarity=SIMILARITIES.index(self.similarity),
            query_norm=self.query_norm,
            top_k=0,
        )
        return affinity_scores(inputs, accumulation_dtype(self.dtype)).mT

    def _no_value(self) -> Tensor:
        """A value of width 0, whose read gives only the weights, or their sums [B, N, 0]."""
        return self.key.new_empty(*self.shape[:2], 0)

    def _current_versions(self) -> list[int]:
        """How often each tensor was changed in place; inference tensors do not count it."""
        if torch.compiler.is_compiling():
            return []
        tensors = self.query, self.key, self.shrinkage, self.selection
        return [tensor._version for tensor in tensors if tensor is not None and not tensor.is_inference()]

    def _check_unchanged(self) -> None:
        """Raises RuntimeError for tensors changed in place, which a matrix made earlier would not have seen."""
        if self._versions != self._current_versions():
            found = "found one changed in place since, expected no change until the last read"
            raise RuntimeError(f"tensors of a lazy {type(self).__name__}: {found}; {self._dense} makes it a tensor")

    def _picks(self, index: Any) -> tuple[slice | Tensor, slice | Tensor]:
        """What an index ``[:, memory, queries]`` picks of each: a slice, or a tensor ``[n]`` of indices or booleans."""
        given = list(index) if isinstance(index, tuple) else [index]
        batch, memory, queries, *more = given + [slice(None)] * (3 - len(given))
        tensors = [part for part in (memory, queries) if isinstance(part, Tensor)]
        if (
            more
            or not _is_all(batch)
            or not all(isinstance(part, slice | Tensor) for part in (memory, queries))
            or any(part.ndim != 1 for part in tensors)
            or len(tensors) == 2  # PyTorch would pair them
        ):
            raise self._refusal(f"index of {', '.join(type(part).__name__ for part in given)}")
        return memory, queries

    @classmethod
    def _refusal(cls, operation: str) -> TypeError:
        return TypeError(f"{operation}: found a lazy {cls.__name__}, expected a tensor: {cls._dense} makes it one")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(str(self._refusal(name)))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operation = _OPERATIONS.get(func)
        result = None if operation is None else operation(*args, **(kwargs or {}))
        if result is None:
            raise cls._refusal(resolve_name(func) or func.__name__)
        return result


def _refused(operation: str) -> Callable[..., NoReturn]:
    def refuse(self: LazyProduct, *_: object) -> NoReturn:
        raise self._refusal(operation)

    return refuse


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
_OTHERS = ("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge", "bool", "float", "int", "len")
# Python would otherwise compare identities, take any object for true, and give one to NumPy
for _name in (*_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC), *_OTHERS, "iter", "array", "setitem"):
    setattr(LazyProduct, f"__{_name}__", _refused(f"__{_name}__"))


class Scores(LazyProduct):
    """The scores before the softmax, ``[B, N, M]``: what get_similarity() returns and do_softmax() takes.

    ``scores[:, memory, queries]`` takes slices, and of one of the two a tensor ``[n]`` of indices or booleans;
    `torch.cat` joins scores of the same queries along the memory.
    """

    _dense = "similarity.dense()"

    def softmax(self, top_k: SupportsIndex | None = None) -> "Affinity":
        """The affinity, over the `top_k` largest scores of each query if given."""
        self._check_unchanged()
        tensors = self.query, self.key, self.similarity, self.shrinkage, self.selection
        return Affinity(*tensors, self.query_norm, top_k, self.backend)

    def dense(self) -> Tensor:
        """The scores as a tensor ``[B, N, M]``. Differentiable."""
        return self._dense_scores().to(self.dtype)

    def __getitem__(self, index: Any) -> "Scores":
        memory, queries = self._picks(index)
        self._check_unchanged()
        return Scores(
            _picked(self.query, queries),
            _picked(self.key, memory),
            self.similarity,
            None if self.shrinkage is None else _picked(self.shrinkage, memory),
            None if self.selection is None else _picked(self.selection, queries),
            self.query_norm,
            self.backend,
        )

    def _joins(self, other: "Scores") -> bool:
        """Whether both are scores of the same queries, which may be different views of them."""
        return (
            _is_same(self.query, other.query)
            and _is_same(self.selection, other.selection)
            and (self.shrinkage is None) == (other.shrinkage is None)
            and (self.similarity, self.query_norm, self.backend) == (other.similarity, other.query_norm, other.backend)
        )


class Affinity(LazyProduct):
    """The softmax of scores over the memory, ``[B, N, M]``: ``value @ affinity`` is a memory read.

    Any number of values can be read: with `top_k` by rows and weights that are computed once, otherwise each by a read
    of its own. With a batch of 1 all values share the affinity. ``affinity[:, :, queries]`` takes a slice, or a tensor
    ``[n]`` of indices or booleans.

    Checkpointing a function that takes one requires ``use_reentrant=False``: reentrant checkpoints do not look for
    tensors inside arguments.

    Args:
        query: ``[B or 1, M, Ck]``.
        key: ``[B or 1, N, Ck]``.
        similarity, shrinkage, selection, query_norm, top_k, backend: as in :func:`stm_fast.memory_read`.
    """

    _dense = "affinity.dense()"
    _kept: tuple[Tensor, Tensor] | None = None  # weights and rows [B, M, k]

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        similarity: Similarity,
        shrinkage: Tensor | None = None,
        selection: Tensor | None = None,
        query_norm: bool = True,
        top_k: SupportsIndex | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(query, key, similarity, shrinkage, selection, query_norm, backend)
        count = as_top_k(top_k)
        if count is not None and count < key.shape[1]:
            # not at the first read, which a checkpoint may repeat
            _, *kept = memory_read(query, key, self._no_value(), return_top_k=True, **self.options(count))
            self._kept = kept[0], kept[1]

    def read(self, value: Tensor) -> Tensor:
        """``[B, N, Cv]`` to ``[B, M, Cv]``: the values weighted by this affinity.

        Raises TypeError or ValueError for a value that does not match, and RuntimeError if there is no `top_k` and
        queries or memory rows have been changed in place.
        """
        if self._kept is None:
            self._check_unchanged()
            return memory_read(self.query, self.key, value, **self.options())
        if value.shape[1] != self.key.shape[1]:
            raise ValueError(f"value: found {value.shape[1]} rows, expected {self.key.shape[1]} like key")
        return read_rows(*self._kept, value, backend=self.backend)

    def usage(self) -> Tensor:
        """``[B, N]``, the weight of each memory row summed over the queries (not differentiable)."""
        if self._kept is None:
            self._check_unchanged()
            return memory_read(self.query, self.key, self._no_value(), return_usage=True, **self.options())[1]
        weights, rows = self._kept
        none = weights.new_zeros(self.shape[:2])
        return none.scatter_add(1, rows.flatten(1), weights.detach().flatten(1))

    def dense(self) -> Tensor:
        """The affinity as a tensor ``[B, N, M]``. Differentiable."""
        if self._kept is None:
            return self._dense_scores().softmax(1).to(self.dtype)
        weights, rows = self._kept
        batch, count, queries = self.shape
        return weights.new_zeros(batch, queries, count).scatter(2, rows, weights).mT.to(self.dtype)

    def __getitem__(self, index: Any) -> Self:
        memory, queries = self._picks(index)
        if not _is_all(memory):
            raise self._refusal("index along the memory")
        if self._kept is None:
            self._check_unchanged()
        picked = copy(self)
        picked.query = _picked(self.query, queries)
        picked.selection = None if self.selection is None else _picked(self.selection, queries)
        if self._kept is not None:
            picked._kept = _picked(self._kept[0], queries), _picked(self._kept[1], queries)
        picked._versions = picked._current_versions()
        return picked

    def __rmatmul__(self, value: Any) -> Tensor:
        # PyTorch tries it after a TypeError of __torch_function__(), whose message it drops
        read = _product(value, self)
        if read is None:
            raise self._refusal("__rmatmul__")
        return read

    def _weighted(self, value: Tensor) -> Tensor:
        """[C, N] or [B, C, N] to [B, C, M]."""
        rows = value.mT if value.ndim == 3 else value.mT[None]
        if rows.shape[0] == 1:
            rows = rows.expand(self.shape[0], -1, -1)
        return self.read(rows).mT


def _recorded(tensor: Tensor) -> Tensor:
    """The tensor, whose gradient is wanted only if gradients are on."""
    return tensor.detach() if tensor.requires_grad and not torch.is_grad_enabled() else tensor


def _is_all(index: Any) -> bool:
    return isinstance(index, slice) and index == slice(None)


def _picked(tensor: Tensor, index: slice | Tensor) -> Tensor:
    """Of the second dimension."""
    return tensor if _is_all(index) else tensor[:, index]


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are the same elements in memory."""
    if one is None or other is None or one is other:
        return one is other
    layouts = ((t.data_ptr(), t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in (one, other))
    return next(layouts) == next(layouts)


def _product(*operands: Any, **named: Any) -> Tensor | None:
    """``value @ affinity``; None for what it is not defined for."""
    operands += tuple(named.values())
    if len(operands) != 2 or not named.keys() <= {"input", "other", "mat2", "tensor2"}:
        return None
    value, affinity = operands
    if not isinstance(value, Tensor) or not isinstance(affinity, Affinity) or value.ndim not in (2, 3):
        return None
    return affinity._weighted(value)


def _concatenation(tensors: Iterable[Any], dim: int = 0, **unknown: Any) -> Scores | None:
    """Scores joined along the memory; None for what it is not defined for."""
    parts = list(tensors)
    if unknown or dim not in (1, -2) or not all(isinstance(part, Scores) for part in parts):
        return None
    first = parts[0]
    for part in parts:
        part._check_unchanged()
        if not first._joins(part):
            raise ValueError("torch.cat: found similarities of different queries or options, expected the same")
    return Scores(
        first.query,
        torch.cat([part.key for part in parts], dim=1),
        first.similarity,
        None if first.shrinkage is None else torch.cat([part.shrinkage for part in parts], dim=1),
        first.selection,
        first.query_norm,
        first.backend,
    )


_OPERATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.matmul: _product,
    torch.bmm: _product,
    Tensor.matmul: _product,
    Tensor.__matmul__: _product,
    Tensor.bmm: _product,
    torch.cat: _concatenation,
    torch.concat: _concatenation,
    torch.concatenate: _concatenation,
}
