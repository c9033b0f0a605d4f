"""What a kernel launch is given: arithmetic, addresses."""

from collections.abc import Iterator

import pytest
import torch

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.launch import LARGEST_TILE, addressable, arithmetic_of


@pytest.mark.parametrize("rows", [10, 2**22, 2**24 - 128])
def test_a_view_whose_tiles_span_32_bits_is_read_in_place(rows: int) -> None:
    channels_first = torch.empty(1, 128, rows, device="meta").mT  # [1, N, C]
    assert addressable(channels_first) is channels_first
    rows_first = torch.empty(1, 2**31, 512, device="meta")
    assert addressable(rows_first) is rows_first


def test_a_view_whose_tiles_span_more_is_copied() -> None:
    channels_first = torch.empty(1, 128, 2**24, device="meta").mT
    assert LARGEST_TILE * channels_first.stride(1) + 128 * channels_first.stride(2) > 2**31
    assert addressable(channels_first).is_contiguous()


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
