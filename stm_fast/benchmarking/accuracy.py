"""How far a result is from float64, on some of the queries: a figure without it may be one of a wrong result."""

import math

import torch
from torch import Tensor

from stm_fast.benchmarking.inputs import Inputs
from stm_fast.benchmarking.timing import Results
from stm_fast.benchmarking.workload import TOP_K, Workload
from stm_fast.ops import memory_read

_QUERIES = 64  # compared, evenly spaced
_ROWS_AT_MOST = 400_000  # of all objects: float64 copies of more would be the largest thing in memory


class Exact:
    """The float64 result of a pass for some queries: of the read, or of the gradient of the query."""

    def __init__(self, workload: Workload, inputs: Inputs) -> None:
        self._backward = workload.pass_name == "backward"
        self._chosen = torch.linspace(0, workload.shape.queries - 1, min(_QUERIES, workload.shape.queries)).long()
        self._result: Tensor | None = None  # [1 or O, chosen, Ck or Cv]
        if workload.shape.rows * workload.shape.objects <= _ROWS_AT_MOST:
            self._result = self._read(workload, inputs)

    def _read(self, workload: Workload, inputs: Inputs) -> Tensor:
        query = inputs.query[:, self._chosen].double().requires_grad_(self._backward)
        top_k = TOP_K if workload.pass_name == "top-k" else None
        key, value = (tensor.double() for tensor in inputs.memory)
        out = memory_read(query, key, value, top_k=top_k, backend="reference")
        assert isinstance(out, Tensor)
        if not self._backward:
            return out
        return torch.autograd.grad(out, query, inputs.upstream[:, self._chosen].double())[0]

    def error(self, results: Results) -> float | None:
        """Root mean square difference over the root mean square of the exact result; None where it is too large."""
        if self._result is None:
            return None
        difference = results[0][:, self._chosen].double() - self._result
        error = float(difference.square().mean().sqrt() / self._result.square().mean().sqrt())
        return error if math.isfinite(error) else math.inf
