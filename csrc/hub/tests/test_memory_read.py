"""The kernel as it was built, in the folder of the hub's layout: against float64, forward and every gradient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels import get_local_kernel

kernel = get_local_kernel(Path(__file__).resolve().parents[1])
Case = kernel.testing.ReadCase
CASES = (Case(), Case(similarity="l2", shrinkage=True, selection=True), Case(top_k=5, return_usage=True))
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_accurate_as_eager(case: Any, dtype: torch.dtype, device: str) -> None:
    kernel.testing.check_case(case, dtype, "cpp" if device == "cpu" else "triton", device)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break_and_once_for_all_lengths(device: str) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    read = torch.compile(kernel.memory_read, fullgraph=True, dynamic=True, backend=count)
    for case in (Case(), replace(Case(), rows=131)):
        query, key, value = kernel.testing.make_tensors(case, torch.float32, device)[:3]
        torch.testing.assert_close(read(query, key, value), kernel.memory_read(query, key, value))
    assert len(graphs) == 1
