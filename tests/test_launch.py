"""What a kernel launch is given: arithmetic, addresses."""

from collections.abc import Iterator

import pytest
import torch

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.launch import arithmetic_of


@pytest.fixture
def _tf32_setting() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("_tf32_setting")
def test_float32_is_exact_unless_pytorch_is_allowed_tf32() -> None:
    assert arithmetic_of(torch.bfloat16) == arithmetic_of(torch.float16) == "half"
    for precision, arithmetic in (("ieee", "ieee"), ("tf32", "tf32x3")):
        torch.backends.cuda.matmul.fp32_precision = precision
        assert arithmetic_of(torch.float32) == arithmetic


def test_parts_without_value_channels_have_their_lse_combined() -> None:
    *_, launch = plan_combine(torch.empty(1, 2, 3, 0), torch.empty(1, 2, 3), torch.float32)
    assert 0 not in launch.grid
