"""Cases, inputs and the float64 criterion of the memory read: shared by the tests and the benchmarks.

The criterion (after FlashAttention's): a fused result is judged against float64, relative to the error that eager
PyTorch makes in the same dtype. It says what the dtype can give, so no tolerance is ever chosen by hand.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm_fast.ops import functional, reference
from stm_fast.ops.inputs import ReadInputs, Similarity


@dataclass(frozen=True)
class ReadCase:
    """The shape and the options of one memory read, without its numbers."""

    batch: int = 2
    queries: int = 33
    rows: int = 97
    key_dim: int = 16
    value_dim: int = 32
    shared_query: bool = False
    shared_key: bool = False
    lengths: tuple[int, ...] | None = None
    similarity: Similarity = "dot"
    shrinkage: bool = False
    selection: bool = False
    query_norm: bool = True
    top_k: int | None = None
    spread: float = 1.0  # factor on the keys: 1 is a soft read, 100 a nearly hard one
    channels_first: bool = False  # views of [B, C, rows], as networks hold them

    def __str__(self) -> str:
        default = ReadCase()
        named = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return "-".join(f"{name}={value}" for name, value in named.items()) or "default"


class Tensors(NamedTuple):
    """The differentiable inputs of a memory read."""

    query: Tensor
    key: Tensor
    value: Tensor
    shrinkage: Tensor | None
    selection: Tensor | None


def make_tensors(case: ReadCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Tensors:
    """Random inputs of a case; the rows beyond its lengths hold NaN, which must not matter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(batch: int, rows: int, width: int) -> Tensor:
        if case.channels_first:
            return torch.randn(batch, width, rows, generator=generator).mT
        return torch.randn(batch, rows, width, generator=generator)

    query_batch, key_batch = 1 if case.shared_query else case.batch, 1 if case.shared_key else case.batch
    query = normal(query_batch, case.queries, case.key_dim)
    key = normal(key_batch, case.rows, case.key_dim) * case.spread
    value = normal(case.batch, case.rows, case.value_dim)
    shrinkage = 1 + torch.rand(key_batch, case.rows, generator=generator) if case.shrinkage else None
    selection = torch.rand(query_batch, case.queries, case.key_dim, generator=generator) if case.selection else None
    if case.lengths is not None:
        spare = torch.arange(case.rows) >= torch.tensor(case.lengths)[:, None]  # [B, N]
        value[spare] = math.nan
        key[spare if key_batch == case.batch else spare.all(0, keepdim=True)] = math.nan
    moved = [None if t is None else t.to(device, dtype) for t in (query, key, value, shrinkage, selection)]
    return Tensors(*moved)  # type: ignore[arg-type]


def options(case: ReadCase, device: str = "cpu") -> dict[str, Any]:
    """The keyword arguments of memory_read() that are not tensors to differentiate."""
    lengths = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int32, device=device)
    return {
        "similarity": case.similarity,
        "query_norm": case.query_norm,
        "lengths": lengths,
        "top_k": case.top_k,
    }


def read_outputs(case: ReadCase, tensors: Tensors, backend: str, usage: bool = False) -> dict[str, Tensor]:
    """out, lse (and usage) of one backend."""
    names = ("out", "lse", "usage") if usage else ("out", "lse")
    results = functional.memory_read(
        *tensors[:3],
        shrinkage=tensors.shrinkage,
        selection=tensors.selection,
        return_lse=True,
        return_usage=usage,
        backend=backend,
        **options(case, tensors.query.device.type),
    )
    return dict(zip(names, results, strict=True))


def with_gradients(outputs: dict[str, Tensor], tensors: Tensors, seed: int = 1) -> dict[str, Tensor]:
    """The outputs and the gradient of a random weighting of out and lse for every input, as grad_<name>."""
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64, device=tensors.query.device)
    for name in ("out", "lse"):
        output = outputs[name]
        weight = torch.randn(output.shape, generator=generator).to(output.device)
        # an empty memory has lse -inf, whose gradient is 0 by contract
        finite = output.masked_fill(output == -math.inf, 0)
        loss = loss + (finite * weight.to(output.dtype)).sum().double()
    named = {name: tensor for name, tensor in tensors._asdict().items() if tensor is not None}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    results = {name: output.detach() for name, output in outputs.items()}
    for (name, tensor), gradient in zip(named.items(), gradients, strict=True):
        results[f"grad_{name}"] = torch.zeros_like(tensor) if gradient is None else gradient
    return results


def in_float64(tensors: Tensors) -> Tensors:
    """The same numbers in float64: the reference on them is the exact result."""
    doubles = [None if tensor is None else tensor.detach().double() for tensor in tensors]
    return Tensors(*doubles)  # type: ignore[arg-type]


def require_grad(tensors: Tensors) -> Tensors:
    """Leaves of a new graph with the same numbers and strides."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    return Tensors(*leaves)  # type: ignore[arg-type]


def eager_outputs(case: ReadCase, tensors: Tensors, usage: bool = False) -> dict[str, Tensor]:
    """What eager PyTorch gives in the dtype of the inputs: the published matrix product, softmax, matrix product."""
    query, key, value = tensors[:3]
    inputs = ReadInputs(
        query,
        key,
        value,
        1 / math.sqrt(case.key_dim),
        case.similarity,
        tensors.shrinkage,
        tensors.selection,
        case.query_norm,
        options(case, query.device.type)["lengths"],
        0 if case.top_k is None or case.top_k >= case.rows else case.top_k,
        usage,
    )
    result = reference.read_eager(inputs, query.dtype)
    return {name: tensor for name, tensor in result._asdict().items() if tensor is not None}


def assert_no_worse_than_eager(
    fused: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], factor: float = 2.0
) -> None:
    """Every fused tensor is no further from float64 than `factor` times eager PyTorch in the same dtype.

    Two roundings of the largest value are allowed beyond that. -inf must be -inf in the exact result too.
    """
    for name, found in fused.items():
        error, allowed = error_and_allowance(found, eager[name], exact[name], factor)
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def error_and_allowance(fused: Tensor, eager: Tensor, exact: Tensor, factor: float) -> tuple[float, float]:
    """The largest absolute error against float64 (inf where it is not finite), and what eager's error allows."""
    if fused.numel() == 0:
        return 0.0, 0.0
    largest = float(exact.masked_fill(exact == -math.inf, 0).abs().max())
    two_roundings = torch.finfo(fused.dtype).eps * largest
    return _distance(fused, exact), factor * _distance(eager, exact) + two_roundings


def _distance(approximate: Tensor, exact: Tensor) -> float:
    equal_infinities = (approximate == -math.inf) & (exact == -math.inf)
    distance = (approximate.double() - exact.double()).abs().masked_fill(equal_infinities, 0)
    return float(distance.nan_to_num(nan=math.inf).max())


def check_case(case: ReadCase, dtype: torch.dtype, backend: str, device: str = "cpu", gradients: bool = True) -> None:
    """Runs one case on one backend and holds out, lse (and every gradient) to the criterion."""
    tensors = make_tensors(case, dtype, device)
    doubles = in_float64(tensors)
    if gradients:
        tensors, doubles = require_grad(tensors), require_grad(doubles)
    fused = read_outputs(case, tensors, backend)
    eager = eager_outputs(case, tensors)
    exact = read_outputs(case, doubles, "reference")
    if gradients:
        fused, eager, exact = (
            with_gradients(fused, tensors),
            with_gradients(eager, tensors),
            with_gradients(exact, doubles),
        )
    assert_no_worse_than_eager(fused, eager, exact)
