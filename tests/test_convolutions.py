"""Fused convolutions, ResNet blocks and stems against float64, with each set of instructions."""

import math
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convolutions import with_threads
from instruction_sets import CONVOLVE_BFLOAT16, SETS, run_cases
from stm_fast.errors import InputError
from stm_fast.network import STM
from stm_fast.network.backbone import BasicBlock, Bottleneck
from stm_fast.network.deploy import convolutions, for_inference, stems, winograd
from stm_fast.network.deploy.convolutions import FusedBasicBlock, FusedBottleneckBlock, NarrowConv, PointwiseConv
from stm_fast.network.deploy.stems import PooledMemoryEncoder, StemConv
from stm_fast.ops import cpp_ops
from stm_fast.testing import assert_no_worse_than_eager

REASONS = convolutions.absent_reasons()
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request) -> torch.dtype:
    if not cpp_ops.convolves(request.param):
        pytest.skip("this machine does not multiply it")
    return request.param


class Case(NamedTuple):
    """The shapes of a 1x1 convolution and its image."""

    size: tuple[int, int]  # H, W
    channels: tuple[int, int]  # C, K
    stride: int = 1
    batch: int = 1

    def __str__(self) -> str:
        return "-".join(str(part) for part in self).replace(" ", "")


# whole and partial panels of 16 channels; tiles of 1 to 4 vectors; groups of 6 and 8 pixels, and remainders
CASES = (
    Case((9, 13), (64, 256)),
    Case((5, 7), (256, 64)),
    Case((8, 6), (2, 80)),
    Case((7, 9), (34, 50), stride=2, batch=2),
    Case((12, 11), (128, 17)),
    Case((1, 1), (6, 1), stride=2),
    Case((3, 4), (18, 130), batch=3),
    Case((2, 1), (30, 100), stride=3),
    # several blocks of pixels per thread
    Case((40, 61), (512, 48)),
)


def filled(conv: nn.Conv2d) -> nn.Conv2d:
    """Sets weights that keep the magnitude of the input."""
    nn.init.normal_(conv.weight, 0, 1 / math.sqrt(conv.weight[0].numel()))
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    return conv


def image(dtype, *size):
    return torch.randn(size).to(dtype).to(memory_format=torch.channels_last)


def exact(module, *inputs):
    """In float64."""
    return deepcopy(module).double()(*(tensor.double() for tensor in inputs))


def check(found, eager, truth):
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_no_worse_than_eager({"y": found}, {"y": eager}, {"y": truth.to(eager.dtype)}, {"y": truth})


def test_a_built_extension_has_the_convolutions():
    assert convolutions.absent_reasons() == cpp_ops.absent_reasons()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_no_worse_than_eager(case, bias, dtype, poisoned_memory):
    conv = filled(nn.Conv2d(*case.channels, 1, case.stride, bias=bias)).to(dtype)
    x = image(dtype, case.batch, case.channels[0], *case.size)
    check(PointwiseConv(conv)(x), conv(x), exact(conv, x))
    check(PointwiseConv(conv)(x, relu=True), F.relu(conv(x)), F.relu(exact(conv, x)))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_a_sum_is_no_worse_than_eager_and_in_place(case, relu, dtype):
    conv = filled(nn.Conv2d(*case.channels, 1, case.stride)).to(dtype)
    x = image(dtype, case.batch, case.channels[0], *case.size)
    eager, truth = conv(x), exact(conv, x)
    added = image(dtype, *eager.shape)
    eager, truth = eager + added, truth + added
    if relu:
        eager, truth = F.relu(eager), F.relu(truth)
    given = added.clone(memory_format=torch.preserve_format)
    found = PointwiseConv(conv)(x, given, relu)
    assert found.data_ptr() == given.data_ptr()
    check(found, eager, truth)


def block_of(kind, channels, stride, dtype) -> nn.Module:
    """Its BatchNorm is folded, and its 3x3 convolutions are replaced like those of a network."""
    block = kind(*channels, stride)
    for name, module in block.named_children():
        if name.startswith("bn"):
            setattr(block, name, nn.Identity())
        elif isinstance(module, nn.Sequential):
            block.downsample = module[0]
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            filled(module)
    return block.to(dtype)


@pytest.mark.parametrize("size", [(1, 9, 14), (2, 5, 6), (1, 1, 1)], ids=str)
@pytest.mark.parametrize(("channels", "stride"), [((32, 32), 1), ((24, 40), 2), ((16, 48), 1)])
@pytest.mark.parametrize("kind", [Bottleneck, BasicBlock])
@pytest.mark.parametrize("with_winograd", [True, False])
def test_a_block_is_no_worse_than_eager(kind, channels, stride, size, with_winograd, dtype):
    block = block_of(kind, channels, stride, dtype)
    x = image(dtype, size[0], channels[0], *size[1:])
    eager, truth = block(x), exact(block, x)
    network = nn.Sequential(block)
    convolutions.replace_convolutions(network)
    assert isinstance(network[0], FusedBottleneckBlock if kind is Bottleneck else FusedBasicBlock)
    if with_winograd:
        winograd.replace_convolutions(network)
    found = network(x)
    if with_winograd and dtype == torch.float32:
        # whose own error may be larger than that of the direct convolution
        assert (found - truth).abs().max() <= 32 * (eager - truth).abs().max() + 2e-6 * truth.abs().max()
    else:
        assert_no_worse_than_eager({"y": found}, {"y": eager}, {"y": truth.to(dtype)}, {"y": truth})


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("outputs", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 64, 9, 30), (2, 18, 4, 5), (3, 2, 1, 1), (1, 6, 2, 49)], ids=str)
def test_a_narrow_convolution_is_no_worse_than_eager(size, outputs, relu, dtype, poisoned_memory):
    conv = filled(nn.Conv2d(size[1], outputs, 3, padding=1)).to(dtype)
    reference = nn.Sequential(nn.ReLU() if relu else nn.Identity(), conv)
    x = image(dtype, *size)
    given = x.clone(memory_format=torch.preserve_format)
    check(NarrowConv(conv, relu)(given), reference(x), exact(reference, x))
    assert torch.equal(given, x)


@pytest.mark.parametrize("window", [(7, 2), (3, 1), (5, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("size", [(1, 3, 33, 20), (2, 2, 8, 9), (1, 1, 1, 1), (3, 5, 4, 2)], ids=str)
def test_a_stem_is_no_worse_than_eager(size, window, dtype, poisoned_memory):
    kernel, stride = window
    conv = filled(nn.Conv2d(size[1], 40, kernel, stride, kernel // 2)).to(dtype)
    x, stem = image(dtype, *size), StemConv(conv)
    eager, truth = conv(x), exact(conv, x)
    check(stem(x), eager, truth)
    for added in (None, image(dtype, *eager.shape), image(dtype, 1, *eager.shape[1:])):
        summed, exactly = (eager, truth) if added is None else (eager + added, truth + added)
        check(stem.pooled(x, added), pooled(summed), pooled(exactly))


def pooled(x):
    return F.max_pool2d(F.relu(x), 3, 2, 1)


@pytest.mark.parametrize("objects", [0, 1, 2])
def test_a_memory_encoder_of_stems_gives_the_same_results(objects):
    """With one object, frame and masks are convolved together."""
    network = STM("resnet18_half", key_dim=16, value_dim=32, decoder_dim=16).eval()
    prepared = for_inference(network)
    assert isinstance(prepared.memory_encoder, PooledMemoryEncoder)
    frame, masks = torch.rand(3, 50, 70), torch.rand(objects, 50, 70) / 2
    for found, expected in zip(prepared.memorize(frame, masks), network.memorize(frame, masks), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", SETS)
def test_every_set_of_instructions_is_right(instructions, tmp_path):
    ended = run_cases(instructions, Path(__file__), tmp_path, "-k", "no_worse_than_eager")
    assert ("skipped" in ended.stdout) == (instructions not in CONVOLVE_BFLOAT16)


def test_nothing_around_an_image_is_read_or_written(dtype):
    """The image and the result are parts of larger tensors, which hold NaN everywhere else."""
    conv = filled(nn.Conv2d(18, 50, 1)).to(dtype)
    fused = PointwiseConv(conv)
    around = torch.full((3, 5, 7, 18), math.nan, dtype=dtype)
    results = torch.full((3, 5, 7, 50), math.nan, dtype=dtype)
    images = around[1:-1].normal_()
    torch.ops.stm_fast.convolution(results[1:-1], images, fused.weight, fused.bias, 1, 1, False, False)
    x = images.permute(0, 3, 1, 2)
    check(results[1:-1].permute(0, 3, 1, 2), conv(x), exact(conv, x))
    assert results[0].isnan().all()
    assert results[-1].isnan().all()


def test_nan_and_infinity_spread_only_as_far_as_the_convolution_reaches(dtype):
    x = image(dtype, 1, 6, 8, 9)
    narrow = NarrowConv(filled(nn.Conv2d(6, 2, 3, padding=1)).to(dtype), relu=True)
    stem = StemConv(filled(nn.Conv2d(6, 20, 7, 2, 3)).to(dtype))
    point = PointwiseConv(filled(nn.Conv2d(6, 20, 1)).to(dtype))
    reach = {narrow: (slice(3, 6), slice(4, 7)), point: (slice(4, 5), slice(5, 6))}
    for bad in (math.nan, math.inf):
        spoiled = x.clone(memory_format=torch.preserve_format)
        spoiled[0, 0, 4, 5] = bad
        for fused, (rows, columns) in reach.items():
            found, clean = fused(spoiled), fused(x)
            inside = torch.zeros(8, 9, dtype=torch.bool)
            inside[rows, columns] = True
            assert torch.equal(found[..., ~inside], clean[..., ~inside])
            assert not found[..., inside].isfinite().any()
        found, expected = stem.pooled(spoiled), pooled(stem(spoiled))
        assert torch.equal(found.isnan(), expected.isnan())
        assert found.isnan().any() or bad == math.inf


def test_convolutions_read_any_layout(dtype):
    conv = filled(nn.Conv2d(34, 20, 1)).to(dtype)
    x, fused = image(dtype, 2, 34, 6, 7), PointwiseConv(conv)
    expected = fused(x)
    assert torch.equal(fused(x.contiguous()), expected)
    wide = x.repeat_interleave(2, dim=3)[..., ::2]
    assert torch.equal(fused(wide), expected)


def test_threads_do_not_change_a_result(dtype):
    x = image(dtype, 2, 64, 37, 50)
    modules = (
        PointwiseConv(filled(nn.Conv2d(64, 64, 1)).to(dtype)),
        NarrowConv(filled(nn.Conv2d(64, 2, 3, padding=1)).to(dtype), relu=True),
        StemConv(filled(nn.Conv2d(64, 16, 7, 2, 3)).to(dtype)).pooled,
    )
    for module in modules:
        first, *others = with_threads(lambda module=module: module(x), 1, 2, 5)
        for other in others:
            assert torch.equal(other, first)


def test_an_image_is_not_overwritten_while_it_is_read():
    x, weight, bias = torch.zeros(1, 3, 3, 16), torch.zeros(1, 16, 16), torch.zeros(16)
    with pytest.raises(RuntimeError, match="out: found the data of x"):
        torch.ops.stm_fast.convolution(x, x, weight, bias, 1, 1, False, False)
    with pytest.raises(RuntimeError, match="out: found the data of x"):
        torch.ops.stm_fast.winograd_convolution(x, x, torch.zeros(36, 1, 16, 16), bias, None, False, False)


def test_no_images_and_no_pixels():
    point = PointwiseConv(nn.Conv2d(8, 24, 1, 2))
    assert point(torch.empty(0, 8, 4, 4)).shape == (0, 24, 2, 2)
    assert point(torch.empty(2, 8, 0, 4)).shape == (2, 24, 0, 2)
    bias, out = torch.arange(16.0), torch.empty(1, 3, 3, 16)
    torch.ops.stm_fast.convolution(out, torch.empty(1, 3, 3, 0), torch.empty(1, 0, 16), bias, 1, 1, False, False)
    assert torch.equal(out, bias.expand_as(out))
    out.zero_()
    winograd = torch.empty(36, 1, 0, 16)
    torch.ops.stm_fast.winograd_convolution(out, torch.empty(1, 3, 3, 0), winograd, bias, None, False, False)
    assert torch.equal(out, bias.expand_as(out))
    assert NarrowConv(nn.Conv2d(8, 2, 3, padding=1), relu=False)(torch.empty(0, 8, 4, 4)).shape == (0, 2, 4, 4)
    assert StemConv(nn.Conv2d(3, 8, 7, 2, 3)).pooled(torch.empty(0, 3, 8, 8)).shape == (0, 8, 2, 2)


def test_unsupported_convolutions_and_inputs_are_refused():
    with pytest.raises(InputError, match=r"conv: found Conv2d.*, expected 1x1"):
        PointwiseConv(nn.Conv2d(8, 8, 3))
    with pytest.raises(InputError, match=r"conv: found Conv2d.*, expected 1x1"):
        PointwiseConv(nn.Conv2d(8, 8, 1).double())
    with pytest.raises(
        InputError, match=r"conv: found Conv2d.*, expected 3x3 with stride 1 and up to 4 output channels"
    ):
        NarrowConv(nn.Conv2d(8, 5, 3, padding=1), relu=True)
    with pytest.raises(InputError, match=r"conv: found Conv2d.*, expected an odd window of up to 7"):
        StemConv(nn.Conv2d(3, 8, 9, 2, 4))
    x, fused = torch.randn(1, 8, 4, 4), PointwiseConv(nn.Conv2d(8, 24, 1))
    with pytest.raises(RuntimeError, match="x: expected float32 or bfloat16"):
        fused(x.double())
    with pytest.raises(RuntimeError, match=r"weight: found \["):
        fused(x[:, :7])
    with pytest.raises(RuntimeError, match=r"bias: found \["):
        torch.ops.stm_fast.convolution(
            torch.empty(1, 4, 4, 24), torch.empty(1, 4, 4, 8), fused.weight, fused.bias[:8], 1, 1, False, False
        )
    with pytest.raises(RuntimeError, match="out: found 1 images of 4 x 5, expected 1 of 4 x 4"):
        fused(x, torch.empty(1, 24, 4, 5))
    with pytest.raises(RuntimeError, match="kernel: found 8, expected 1 to 7"):
        torch.ops.stm_fast.convolution(
            torch.empty(1, 4, 4, 24), torch.empty(1, 4, 4, 8), fused.weight, fused.bias, 8, 1, False, False
        )
    stem = StemConv(nn.Conv2d(3, 8, 7, 2, 3))
    with pytest.raises(RuntimeError, match="added: found 1 images of 3 x 2, expected 1 of 2 x 2"):
        stem.pooled(torch.randn(1, 3, 4, 4), torch.empty(1, 8, 3, 2))


def test_bfloat16_is_replaced_only_in_whole_pairs():
    network = nn.Sequential(nn.Conv2d(7, 8, 1), nn.Conv2d(7, 2, 3, padding=1)).bfloat16()
    convolutions.replace_convolutions(network)
    assert all(isinstance(module, nn.Conv2d) for module in network)
    if cpp_ops.convolves(torch.bfloat16):
        x = torch.empty(4 * 4 * 8 + 1, dtype=torch.bfloat16)[1:].view(1, 4, 4, 8).permute(0, 3, 1, 2)
        with pytest.raises(RuntimeError, match="x: found an odd address"):
            PointwiseConv(nn.Conv2d(8, 8, 1).bfloat16())(x)


@pytest.mark.slow
def test_operators_are_registered_correctly():
    images, out = torch.randn(1, 6, 5, 8), torch.empty(1, 6, 5, 24)
    point = PointwiseConv(nn.Conv2d(8, 24, 1))
    operators = torch.ops.stm_fast
    torch.library.opcheck(operators.convolution, (out, images, point.weight, point.bias, 1, 1, False, True))
    narrow = NarrowConv(nn.Conv2d(8, 2, 3, padding=1), relu=True)
    arguments = (torch.empty(1, 6, 5, 2), images, narrow.weight, narrow.bias, True)
    torch.library.opcheck(operators.narrow_convolution, arguments)
    stem = StemConv(nn.Conv2d(8, 16, 3, 1, 1))
    arguments = (torch.empty(1, 2, 2, 16), images, stem.weight, stem.bias, torch.randn(1, 4, 3, 16), 3, 1)
    torch.library.opcheck(operators.convolution_pool, arguments)


def test_parts_of_other_modules_are_not_replaced():
    network = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, padding=1))
    convolutions.replace_convolutions(network)
    stems.replace_stems(network)
    assert all(isinstance(module, nn.Conv2d) for module in network)
