"""Winograd convolutions and residual blocks against float64, beside PyTorch's."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from convolutions import assert_near_direct, by_winograd, random_conv, with_threads
from stm_fast.network.decoder import ResidualBlock
from stm_fast.network.deploy import winograd
from stm_fast.network.deploy.winograd import WinogradConv, WinogradResidualBlock

REASONS = winograd.absent_reasons()
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
DTYPES = pytest.mark.parametrize("dtype", winograd.DTYPES, ids=str)


@DTYPES
@pytest.mark.parametrize("channels", [(16, 24), (9, 7), (40, 130), (330, 400)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (17, 9), (40, 61)], ids=str)
def test_winograd_matches_the_convolution(size, channels, dtype, poisoned_memory):
    conv, x = random_conv(*channels, dtype), torch.randn(2, channels[0], *size, dtype=dtype)
    weight, bias = conv.weight, conv.bias
    out = by_winograd(conv, x)
    assert out.dtype == dtype
    assert_near_direct(out, lambda wide: F.conv2d(x.to(wide), weight.to(wide), bias.to(wide), padding=1), weight)


@DTYPES
def test_winograd_fuses_activations_and_a_sum(dtype, poisoned_memory):
    conv, x, residual = random_conv(10, 18, dtype), torch.randn(2, 10, 9, 14), torch.randn(2, 18, 9, 14)
    x, residual, weight, bias = x.to(dtype), residual.to(dtype), conv.weight, conv.bias

    def direct(wide: torch.dtype) -> torch.Tensor:
        return F.relu(F.conv2d(x.to(wide).relu(), weight.to(wide), bias.to(wide), padding=1) + residual.to(wide))

    out = by_winograd(conv, x, residual, relu=True)
    assert_near_direct(out, direct, weight)
    assert (out == 0).any()
    x[0, 3, 4, 5] = residual[1, 0, 0, 0] = torch.nan
    undefined = by_winograd(conv, x, residual, relu=True).isnan()
    assert undefined[direct(dtype).isnan()].all()
    assert undefined.float().mean() < 0.2  # only tiles that contain one


@DTYPES
@pytest.mark.parametrize("size", [(5, 30), (61, 57)], ids=str)
def test_winograd_does_not_depend_on_the_number_of_threads(size, dtype):
    # few tiles, which threads share by output channels; and many
    conv, x = random_conv(40, 200, dtype), torch.randn(1, 40, *size, dtype=dtype)
    block = WinogradResidualBlock(ResidualBlock(40).to(dtype).requires_grad_(False))
    results = with_threads(lambda: (by_winograd(conv, x), block(x.clone())), 1, 2, 5)
    for convolved, summed in results[1:]:
        assert torch.equal(convolved, results[0][0])
        assert torch.equal(summed, results[0][1])


def test_winograd_reads_any_layout():
    conv, x = random_conv(8, 8, torch.float32), torch.randn(1, 8, 9, 10)
    expected = by_winograd(conv, x)
    torch.testing.assert_close(by_winograd(conv, x.to(memory_format=torch.channels_last)), expected)
    wide = torch.randn(1, 8, 9, 20)
    wide[..., ::2] = x
    torch.testing.assert_close(by_winograd(conv, wide[..., ::2]), expected)


def test_winograd_refuses_unsupported_inputs():
    ready, x = WinogradConv(random_conv(8, 8, torch.float32)), torch.randn(1, 8, 8, 8)
    with pytest.raises(RuntimeError, match="expected float32 or bfloat16"):
        ready(x.double())
    with pytest.raises(RuntimeError, match="weight: found 4 dimensions, expected 5"):
        ready(x.bfloat16())
    with pytest.raises(RuntimeError, match=r"weight: found \["):
        ready(x[:, :6])
    with pytest.raises(RuntimeError, match=r"weight: found \["):
        winograd.conv3x3(x, ready.weight, ready.bias, 17)
    with pytest.raises(RuntimeError, match=r"bias: found \["):
        winograd.conv3x3(x, ready.weight, ready.bias[:8], 8)
    with pytest.raises(RuntimeError, match="residual: its shape differs from that of out"):
        winograd.conv3x3(x, ready.weight, ready.bias, 8, residual=x[:, :4])
    images, small = torch.randn(1, 8, 8, 8), torch.zeros(36, 1, 8, 16)
    with pytest.raises(RuntimeError, match="weight2: found other tiles than those of weight1"):
        torch.ops.stm_fast.winograd_residual_block(images, ready.weight, ready.bias, small, ready.bias)


@pytest.mark.slow
@DTYPES
def test_winograd_operators_are_registered_correctly(dtype):
    ready, ops = WinogradConv(random_conv(16, 16, dtype)), torch.ops.stm_fast
    x, out = (torch.randn(1, 9, 10, 16, dtype=dtype) for _ in range(2))
    torch.library.opcheck(ops.winograd_convolution, (out, x, ready.weight, ready.bias, x, True, False))
    torch.library.opcheck(ops.winograd_residual_block, (x, ready.weight, ready.bias, ready.weight, ready.bias))


@DTYPES
@pytest.mark.parametrize("size", [(2, 1, 1), (2, 3, 5), (1, 17, 9), (1, 40, 61), (2, 65, 216)], ids=str)
@torch.no_grad()
def test_a_residual_block_matches_its_two_convolutions(size, dtype, poisoned_memory):
    batch, height, width = size
    x = torch.randn(batch, 8, height, width, dtype=dtype).to(memory_format=torch.channels_last)
    block = ResidualBlock(8).to(dtype)
    given = x.clone(memory_format=torch.preserve_format)
    out = WinogradResidualBlock(block)(given)
    assert_near_direct(out, lambda wide: deepcopy(block).to(wide)(x.to(wide)), block.conv1.weight)
    assert out.data_ptr() == given.data_ptr()
