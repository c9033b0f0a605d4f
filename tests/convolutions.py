"""3x3 convolutions of the extension beside PyTorch's, for tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stm_fast.network.deploy.winograd import WinogradConv, conv3x3, tile_of

# the largest rounding errors relative to those of a direct convolution, by dtype and tile; 5.9, 31 and 3.5 were found
MOST_ERROR = {(torch.float32, 4): 8, (torch.float32, 6): 40, (torch.bfloat16, 4): 5}


def assert_near_direct(out: Tensor, direct: Callable[[torch.dtype], Tensor], weight: Tensor) -> None:
    """Compares errors against float64 with the direct convolution's own in the same dtype."""
    truth = direct(torch.float64)
    rounding = torch.finfo(out.dtype).eps * truth.abs().max()
    allowed = MOST_ERROR[out.dtype, tile_of(weight)] * (direct(out.dtype) - truth).abs().max() + 2 * rounding
    assert out.shape == truth.shape
    assert (out - truth).abs().max() <= allowed


def random_conv(channels: int, out_channels: int, dtype: torch.dtype) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1).requires_grad_(False)
    conv.weight.normal_()
    conv.bias.normal_()
    return conv.to(dtype)


def by_winograd(conv: nn.Conv2d, x: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """The convolution by `conv3x3`; `relu` of its input and of its result."""
    ready = WinogradConv(conv)
    return conv3x3(x, ready.weight, ready.bias, conv.out_channels, residual=residual, relu_input=relu, relu_output=relu)


def with_threads(call: Callable[[], Any], *counts: int) -> list[Any]:
    """What a call returns with each number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results
