"""Fused bottlenecks and stems against float64, with each set of instructions, and as parts of a trunk."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from processes import Running
from stm_fast.errors import InputError
from stm_fast.network.bottleneck_layers import FusedBottleneck, FusedStem, replace_bottlenecks
from stm_fast.network.efficientnet import LITE, EfficientNetLite, InvertedBottleneck
from stm_fast.ops import cpp_ops
from stm_fast.ops import inverted_bottleneck as ops
from stm_fast.testing import assert_no_worse_than_eager

REASONS = ops.absent_reasons()
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
DTYPES = pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)


class Case(NamedTuple):
    """A bottleneck and its picture, without their numbers."""

    size: tuple[int, int]  # H, W
    channels: tuple[int, int, int]  # Cin, M, Cout; M = Cin: nothing is widened
    kernel: int = 3
    stride: int = 1
    residual: bool = False
    batch: int = 1

    def __str__(self) -> str:
        return "-".join(str(part) for part in self).replace(" ", "")


# whole and broken panels of 16 channels, vectors, pairs and blocks of 48; groups of 4, 6 and 8 pixels and what is left
CASES = (
    Case((9, 13), (8, 48, 24), residual=False),
    Case((17, 10), (24, 144, 24), residual=True),
    Case((16, 23), (16, 96, 24), stride=2),
    Case((12, 11), (24, 144, 40), kernel=5, stride=2),
    Case((11, 14), (20, 120, 52), kernel=5),
    Case((7, 9), (24, 24, 16)),
    Case((7, 8), (7, 7, 5), kernel=5, stride=2),
    Case((5, 6), (13, 77, 13), kernel=5, residual=True, batch=2),
    Case((6, 5), (13, 77, 9), stride=2, batch=2),
    Case((1, 1), (3, 18, 3), residual=True),
    Case((1, 7), (1, 1, 1), kernel=5, stride=2),
    Case((2, 1), (4, 200, 130), stride=2),
    # several strips a thread, and several blocks of channels
    Case((150, 40), (40, 288, 48), kernel=5, batch=2),
    Case((31, 54), (88, 528, 88), residual=True),
)


def weights_of(case, dtype) -> ops.Weights:
    inward, width, outward = case.channels
    expand = None if width == inward else torch.randn(width, inward, 1, 1) / math.sqrt(inward)
    drawn = ops.Weights(
        expand,
        None if expand is None else torch.randn(width),
        torch.randn(width, 1, case.kernel, case.kernel) / case.kernel,
        torch.randn(width),
        torch.randn(outward, width, 1, 1) / math.sqrt(width),
        torch.randn(outward),
    )
    return as_type(drawn, dtype)


def as_type(weights, dtype) -> ops.Weights:
    return ops.Weights(*(None if tensor is None else tensor.to(dtype) for tensor in weights))


def picture_of(case, dtype):
    return torch.randn(case.batch, case.channels[0], *case.size).to(dtype).to(memory_format=torch.channels_last)


def rounded_once(x, weights, case):
    """In float64, what lies between two convolutions rounded to the dtype of `x` as a network would store it."""
    doubles, dtype = as_type(weights, torch.float64), x.dtype
    nothing = doubles._replace(project=torch.eye(case.channels[1], dtype=torch.float64)[..., None, None])
    nothing = nothing._replace(project_bias=torch.zeros(case.channels[1], dtype=torch.float64))
    h = x.double()
    if doubles.expand is not None:
        h = F.relu6(F.conv2d(h, doubles.expand, doubles.expand_bias)).to(dtype).double()
    h = ops.reference(h, nothing._replace(expand=None, expand_bias=None), stride=case.stride).to(dtype).double()
    projected = F.conv2d(F.relu6(h), doubles.project, doubles.project_bias).to(dtype).double()
    return (x.double() + projected if case.residual else projected).to(dtype)


def check(found, x, weights, case):
    how = {"stride": case.stride, "residual": case.residual}
    exact = ops.reference(x.double(), as_type(weights, torch.float64), **how)
    eager = ops.reference(x, weights, **how)
    assert_no_worse_than_eager({"y": found}, {"y": eager}, {"y": rounded_once(x, weights, case)}, {"y": exact})


def test_an_extension_that_is_here_has_the_bottlenecks():
    assert ops.absent_reasons() == cpp_ops.absent_reasons()


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bottleneck_is_no_worse_than_eager(case, dtype, poisoned_memory):
    x, weights = picture_of(case, dtype), weights_of(case, dtype)
    found = ops.inverted_bottleneck(x, ops.pack(weights), stride=case.stride, residual=case.residual)
    assert found.is_contiguous(memory_format=torch.channels_last)
    check(found, x, weights, case)


@DTYPES
@pytest.mark.parametrize("kernel", ops.KERNELS)
@pytest.mark.parametrize("stride", ops.STRIDES)
@pytest.mark.parametrize("size", [(2, 3, 33, 20), (1, 1, 1, 1), (1, 5, 8, 9)], ids=str)
def test_a_convolution_is_no_worse_than_eager(size, kernel, stride, dtype, poisoned_memory):
    x = torch.randn(size).to(dtype)
    weight, bias = torch.randn(20, size[1], kernel, kernel).to(dtype), torch.randn(20).to(dtype)
    found = ops.convolution_relu6(x, ops.pack_convolution(weight, bias), stride=stride)
    exact = ops.reference_convolution(x.double(), weight.double(), bias.double(), stride=stride)
    eager = ops.reference_convolution(x, weight, bias, stride=stride)
    assert_no_worse_than_eager({"y": found}, {"y": eager}, {"y": exact.to(dtype)}, {"y": exact})


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["avx512_bf16", "avx512", "avx2", "portable", "emulated"])
def test_every_set_of_instructions_is_right(instructions, tmp_path):
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "no_worse_than_eager", str(Path(__file__))]
    ended = Running(arguments, tmp_path, "pytest", STM_FAST_CPU=instructions).wait()
    if "STM_FAST_CPU: found" in ended.stdout + ended.stderr:
        pytest.skip("this machine does not have it")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "skipped" not in ended.stdout


@DTYPES
@pytest.mark.parametrize("case", [CASES[3], CASES[7]], ids=str)
def test_nothing_around_a_picture_is_read_or_written(case, dtype):
    """The picture and the result are parts of larger tensors, which hold NaN wherever they do not."""
    weights = weights_of(case, dtype)
    batch, (height, width), (inward, _, outward) = case.batch, case.size, case.channels
    around = torch.full((batch + 2, height, width, inward), math.nan, dtype=dtype)
    pictures = around[1:-1].normal_()
    strided = (-(-height // case.stride), -(-width // case.stride))
    results = torch.full((batch + 2, *strided, outward), math.nan, dtype=dtype)
    *tensors, expanded, _ = ops.pack(weights)
    torch.ops.stm_fast.inverted_bottleneck(
        results[1:-1], pictures, *tensors, expanded, case.kernel, case.stride, case.residual
    )
    check(results[1:-1].permute(0, 3, 1, 2), pictures.permute(0, 3, 1, 2), weights, case)
    assert results[0].isnan().all()
    assert results[-1].isnan().all()


@DTYPES
def test_a_bad_number_stays_where_the_convolution_sees_it(dtype):
    """With a number of channels that fills neither a vector nor a pair, of which the next pixel's could be read."""
    case = Case((9, 10), (5, 35, 7))
    x, weights = picture_of(case, dtype), weights_of(case, dtype)
    clean = ops.inverted_bottleneck(x, ops.pack(weights), stride=1)
    for bad in (math.nan, math.inf):
        spoilt = x.clone()
        spoilt[0, 0, 4, 5] = bad
        found = ops.inverted_bottleneck(spoilt, ops.pack(weights), stride=1)
        expected = ops.reference(spoilt.double(), as_type(weights, torch.float64), stride=1)
        seen = torch.zeros(9, 10, dtype=torch.bool)
        seen[3:6, 4:7] = True
        assert torch.equal(found[..., ~seen], clean[..., ~seen])
        assert torch.equal(found.isnan(), expected.isnan())


@DTYPES
def test_bottlenecks_read_any_layout(dtype):
    case = CASES[1]
    x, weights = picture_of(case, dtype), weights_of(case, dtype)
    packed = ops.pack(weights)
    expected = ops.inverted_bottleneck(x, packed, stride=1, residual=True)
    assert torch.equal(ops.inverted_bottleneck(x.contiguous(), packed, stride=1, residual=True), expected)
    wide = x.repeat_interleave(2, dim=3)[..., ::2]
    assert torch.equal(ops.inverted_bottleneck(wide, packed, stride=1, residual=True), expected)


def test_a_picture_that_begins_between_two_pairs():
    """Where pairs of bfloat16 numbers are multiplied as they lie, they lie at even places."""
    case = CASES[2]
    x, weights = picture_of(case, torch.bfloat16), weights_of(case, torch.bfloat16)
    shifted = torch.empty(x.numel() + 1, dtype=torch.bfloat16)[1:].view(1, *case.size, 16).permute(0, 3, 1, 2)
    packed = ops.pack(weights)
    expected = ops.inverted_bottleneck(x, packed, stride=2)
    assert torch.equal(ops.inverted_bottleneck(shifted.copy_(x), packed, stride=2), expected)


@DTYPES
def test_threads_do_not_change_a_result(dtype):
    case = CASES[12]
    x, weights = picture_of(case, dtype), weights_of(case, dtype)
    before, packed, results = torch.get_num_threads(), ops.pack(weights), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(ops.inverted_bottleneck(x, packed, stride=1))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_pictures_and_no_pixels():
    case = Case((4, 4), (8, 48, 24))
    packed = ops.pack(weights_of(case, torch.float32))
    assert ops.inverted_bottleneck(torch.empty(0, 8, 4, 4), packed, stride=2).shape == (0, 24, 2, 2)
    assert ops.inverted_bottleneck(torch.empty(2, 8, 0, 4), packed, stride=1).shape == (2, 24, 0, 4)


def test_what_cannot_be_is_refused():
    case = Case((4, 4), (8, 48, 24))
    x, weights = picture_of(case, torch.float32), weights_of(case, torch.float32)
    packed = ops.pack(weights)
    with pytest.raises(InputError, match=r"x: found torch\.bfloat16, expected that of the weights, torch\.float32"):
        ops.inverted_bottleneck(x.bfloat16(), packed, stride=1)
    with pytest.raises(InputError, match="stride: found 3, expected 1 or 2"):
        ops.inverted_bottleneck(x, packed, stride=3)
    with pytest.raises(InputError, match=r"depthwise: found \(7, 7\), expected"):
        ops.pack(weights._replace(depthwise=torch.randn(48, 1, 7, 7)))
    with pytest.raises(InputError, match=r"weight: found torch\.float16, expected"):
        ops.pack(as_type(weights, torch.float16))
    with pytest.raises(InputError, match=r"weight: found \(1, 1\), expected"):
        ops.pack_convolution(torch.randn(8, 8, 1, 1), torch.zeros(8))
    with pytest.raises(RuntimeError, match="expand: does not fit the other tensors"):
        ops.inverted_bottleneck(x[:, :7], packed, stride=1)
    with pytest.raises(RuntimeError, match="project_bias: its dtype is not the one"):
        ops.inverted_bottleneck(x, packed._replace(project_bias=packed.project_bias.bfloat16()), stride=1)
    with pytest.raises(RuntimeError, match="residual: x does not fit out"):
        ops.inverted_bottleneck(x, packed, stride=1, residual=True)
    with pytest.raises(RuntimeError, match="project: does not fit the other tensors"):
        ops.inverted_bottleneck(x, packed._replace(channels=40), stride=1)
    with pytest.raises(RuntimeError, match="expanded: does not fit x"):
        ops.inverted_bottleneck(x, packed._replace(expand=None, expand_bias=None), stride=1)
    convolution = ops.pack_convolution(torch.randn(8, 3, 3, 3), torch.zeros(8))
    with pytest.raises(InputError, match=r"x: found torch\.float64, expected torch\.float32 or torch\.bfloat16"):
        ops.convolution_relu6(torch.randn(1, 3, 6, 6).double(), convolution, stride=1)
    with pytest.raises(RuntimeError, match="kernel: found 0, expected 3 or 5"):
        ops.convolution_relu6(torch.randn(1, 4, 6, 6), convolution, stride=1)


@pytest.mark.slow
def test_operators_are_registered_well():
    case = Case((6, 5), (8, 48, 24), stride=2)
    *tensors, expanded, channels = ops.pack(weights_of(case, torch.float32))
    pictures, out = torch.randn(1, 6, 5, 8), torch.empty(1, 3, 3, channels)
    arguments = (out, pictures, *tensors, expanded, 3, 2, False)
    torch.library.opcheck(torch.ops.stm_fast.inverted_bottleneck, arguments)
    convolution = ops.pack_convolution(torch.randn(16, 8, 3, 3), torch.zeros(16))
    arguments = (torch.empty(1, 3, 3, 16), pictures, convolution.weight, convolution.bias, 3, 2)
    torch.library.opcheck(torch.ops.stm_fast.convolution_relu6, arguments)


@DTYPES
@pytest.mark.parametrize("name", LITE)
def test_a_trunk_of_fused_parts_is_the_trunk(name, dtype):
    trunk = EfficientNetLite(name).eval().requires_grad_(False)
    frame = torch.rand(1, 3, 50, 66)
    exact = trunk.double()(frame.double())
    trunk.to(dtype).to(memory_format=torch.channels_last)
    eager = trunk(frame.to(dtype))
    replace_bottlenecks(trunk)
    assert not any(isinstance(module, (InvertedBottleneck, nn.Conv2d)) for module in trunk.modules())
    assert sum(isinstance(module, FusedBottleneck) for module in trunk.modules()) == sum(
        stage.blocks for stage in LITE[name].stages
    )
    fused = trunk(frame.to(dtype))
    names = ("r4", "r3", "r2")
    results = [dict(zip(names, maps, strict=True)) for maps in (fused, eager, eager, exact)]
    assert_no_worse_than_eager(*results)


def test_parts_of_other_modules_are_left():
    odd = InvertedBottleneck(8, 8, 7, 1, 6)
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sequential(InvertedBottleneck(8, 16, 3, 2, 6)), odd)
    replace_bottlenecks(network)
    assert isinstance(network[0], nn.Conv2d)
    assert isinstance(network[1][0], FusedBottleneck)
    assert network[2] is odd
    assert not any(isinstance(module, FusedStem) for module in network.modules())
