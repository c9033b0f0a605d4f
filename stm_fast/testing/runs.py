"""Runs a case with a backend, with eager PyTorch and in float64, and compares them by the criterion."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.ops import functional, reference
from stm_fast.testing.cases import ReadCase, Tensors, leaves, make_tensors, options, read_inputs
from stm_fast.testing.criterion import Results, assert_no_worse_than_eager
from stm_fast.testing.rounding import rounded_once


def check_case(
    case: ReadCase, dtype: torch.dtype, backend: str, device: str = "cpu", gradients: bool = True, seed: int = 0
) -> None:
    """Checks out, lse, usage (if the case returns it) and every gradient of one backend by the criterion.

    Args:
        seed: of the random inputs.

    Raises:
        AssertionError: a result is too far from float64.
        NotImplementedError: a backend that cannot run the case.
    """
    measure = _measure(case, dtype, device, gradients, seed)
    fused = leaves(make_tensors(case, dtype, device, seed), dtype, gradients)
    assert_no_worse_than_eager(
        fused=with_gradients(read_outputs(case, fused, backend), fused, measure.upstream),
        eager=measure.eager,
        rounded=measure.rounded,
        exact=measure.exact,
    )


class _Measure(NamedTuple):
    """What the results of one case are compared with."""

    upstream: Results
    eager: Results
    rounded: Results
    exact: Results


# takes most of the time of a check, and is the same for every backend and number of threads
@lru_cache(maxsize=64)
def _measure(case: ReadCase, dtype: torch.dtype, device: str, gradients: bool, seed: int) -> _Measure:
    tensors = make_tensors(case, dtype, device, seed)
    doubles, eager = leaves(tensors, torch.float64, gradients), leaves(tensors, dtype, gradients)
    exact = read_outputs(case, doubles, "reference")
    upstream = random_upstream(exact) if gradients else {}
    return _Measure(
        upstream,
        with_gradients(eager_outputs(case, eager), eager, upstream),
        rounded_once(case, doubles, dtype, upstream),
        with_gradients(exact, doubles, upstream),
    )


def read_outputs(case: ReadCase, tensors: Tensors, backend: str) -> Results:
    """out, lse (and usage) of one backend."""
    results = functional.memory_read(
        *tensors[:3],
        shrinkage=tensors.shrinkage,
        selection=tensors.selection,
        return_lse=True,
        return_usage=case.return_usage,
        backend=backend,
        **options(case, tensors.query.device.type),
    )
    return dict(zip(("out", "lse", "usage"), results, strict=False))


def eager_outputs(case: ReadCase, tensors: Tensors) -> Results:
    """The results of eager PyTorch in the dtype of the inputs: the published product, softmax and product."""
    result = reference.read_eager(read_inputs(case, tensors), tensors.query.dtype)
    return {name: tensor for name, tensor in result._asdict().items() if tensor is not None}


def random_upstream(outputs: Results, seed: int = 1) -> Results:
    """Gradients for out and lse, exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)

    def eighths(output: Tensor) -> Tensor:
        return torch.randint(-16, 17, output.shape, generator=generator).to(output) / 8

    return {name: eighths(outputs[name].detach()) for name in ("out", "lse")}


def with_gradients(outputs: Results, tensors: Tensors, upstream: Results) -> Results:
    """The outputs, and unless `upstream` is empty, the gradient of every input as grad_<name>."""
    results = {name: output.detach() for name, output in outputs.items()}
    if not upstream:
        return results
    named = {name: tensor for name, tensor in tensors._asdict().items() if tensor is not None}
    gradients = torch.autograd.grad(
        [outputs[name] for name in upstream],
        list(named.values()),
        [gradient.to(outputs[name].dtype) for name, gradient in upstream.items()],
    )
    return results | {f"grad_{name}": gradient for name, gradient in zip(named, gradients, strict=True)}
