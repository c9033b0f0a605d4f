"""Outputs of every backend against float64: shapes, options, extreme numbers."""

import pytest
import torch

from stm_fast.testing import ReadCase, check_case

CASES = [
    ReadCase(),
    ReadCase(queries=1, rows=1, batch=1),
    ReadCase(queries=1, rows=130),
    ReadCase(queries=65, rows=1),
    ReadCase(key_dim=128, value_dim=512, queries=49, rows=150, batch=1),
    ReadCase(key_dim=17, value_dim=9),
    ReadCase(shared_query=True),
    ReadCase(shared_key=True),
    ReadCase(lengths=(97, 40)),
    ReadCase(lengths=(0, 96)),
    ReadCase(spread=100.0),
    ReadCase(spread=0.0),
    ReadCase(channels_first=True),
    ReadCase(queries=0),
    ReadCase(rows=0),
    ReadCase(batch=0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_outputs_are_no_worse_than_eager(backend, case, dtype):
    check_case(case, dtype, backend, gradients=False)
