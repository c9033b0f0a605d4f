"""Fused bottlenecks and stems against float64, with each set of instructions, and as parts of a trunk."""

import math
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from instruction_sets import SETS, run_cases
from stm_fast.errors import InputError
from stm_fast.network.deploy import bottlenecks
from stm_fast.network.deploy.bottlenecks import FusedBottleneck, FusedStem, replace_bottlenecks
from stm_fast.network.efficientnet import LITE, EfficientNetLite, InvertedBottleneck, Stem
from stm_fast.ops import cpp_ops
from stm_fast.testing import assert_no_worse_than_eager

REASONS = bottlenecks.absent_reasons()
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
DTYPES = pytest.mark.parametrize("dtype", bottlenecks.DTYPES, ids=str)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


class Case(NamedTuple):
    """The shapes of a bottleneck and its image."""

    size: tuple[int, int]  # H, W
    channels: tuple[int, int, int]  # Cin, M, Cout; M = Cin: nothing is widened
    kernel: int = 3
    stride: int = 1
    batch: int = 1

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.channels[0] == self.channels[2]

    def __str__(self) -> str:
        return "-".join(str(part) for part in self).replace(" ", "")


# whole and partial panels of 16 channels, vectors, pairs and blocks of 48; groups of 4, 6 and 8 pixels, and remainders
CASES = (
    Case((9, 13), (8, 48, 24)),
    Case((17, 10), (24, 144, 24)),
    Case((16, 23), (16, 96, 24), stride=2),
    Case((12, 11), (24, 144, 40), kernel=5, stride=2),
    Case((11, 14), (20, 120, 52), kernel=5),
    Case((7, 9), (24, 24, 16)),
    Case((7, 8), (7, 7, 5), kernel=5, stride=2),
    Case((5, 6), (13, 77, 13), kernel=5, batch=2),
    Case((6, 5), (13, 77, 9), stride=2, batch=2),
    Case((1, 1), (3, 18, 3)),
    Case((1, 7), (1, 1, 1), kernel=5, stride=2),
    Case((2, 1), (4, 200, 130), stride=2),
    # several strips per thread, and several blocks of channels
    Case((150, 40), (40, 288, 48), kernel=5, batch=2),
    Case((31, 54), (88, 528, 88)),
)


def filled(conv: nn.Conv2d) -> nn.Conv2d:
    """Sets weights that keep the magnitude of the input."""
    nn.init.normal_(conv.weight, 0, 1 / math.sqrt(conv.weight[0].numel()))
    nn.init.normal_(conv.bias)
    return conv


def block_of(case, dtype) -> InvertedBottleneck:
    inward, width, outward = case.channels
    block = InvertedBottleneck(inward, outward, case.kernel, case.stride, 1)
    block.expand = None if width == inward else filled(nn.Conv2d(inward, width, 1))
    block.depthwise = filled(type(block.depthwise)(width, width, case.kernel, case.stride, groups=width))
    block.project = filled(nn.Conv2d(width, outward, 1))
    return block.to(dtype)


def image_of(case, dtype):
    return torch.randn(case.batch, case.channels[0], *case.size).to(dtype).to(memory_format=torch.channels_last)


def in_float64(module: nn.Module) -> nn.Module:
    return deepcopy(module).double()


def rounded_once(x, block):
    """In float64, with every intermediate result rounded to the dtype of `x`, as a network stores it."""
    doubles, dtype = in_float64(block), x.dtype
    h = x.double()
    if doubles.expand is not None:
        h = F.relu6(doubles.expand(h)).to(dtype).double()
    projected = doubles.project(F.relu6(doubles.depthwise(h).to(dtype).double())).to(dtype).double()
    return (x.double() + projected if block.residual else projected).to(dtype)


def check(found, x, block):
    exact, eager = in_float64(block)(x.double()), block(x)
    assert_no_worse_than_eager({"y": found}, {"y": eager}, {"y": rounded_once(x, block)}, {"y": exact})


def test_a_built_extension_has_the_bottlenecks():
    assert bottlenecks.absent_reasons() == cpp_ops.absent_reasons()


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bottleneck_is_no_worse_than_eager(case, dtype, poisoned_memory):
    x, block = image_of(case, dtype), block_of(case, dtype)
    found = FusedBottleneck(block)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert block.residual == case.residual
    check(found, x, block)


@DTYPES
@pytest.mark.parametrize("kernel", bottlenecks.KERNELS)
@pytest.mark.parametrize("stride", bottlenecks.STRIDES)
@pytest.mark.parametrize("size", [(2, 3, 33, 20), (1, 1, 1, 1), (1, 5, 8, 9)], ids=str)
def test_a_convolution_is_no_worse_than_eager(size, kernel, stride, dtype, poisoned_memory):
    x, stem = torch.randn(size).to(dtype), filled(Stem(size[1], 20, kernel, stride)).to(dtype)
    exact, eager = in_float64(stem)(x.double()), stem(x)
    assert_no_worse_than_eager({"y": FusedStem(stem)(x)}, {"y": eager}, {"y": exact.to(dtype)}, {"y": exact})


@pytest.mark.slow
@pytest.mark.parametrize("instructions", SETS)
def test_every_set_of_instructions_is_right(instructions, tmp_path):
    ended = run_cases(instructions, Path(__file__), tmp_path, "-k", "no_worse_than_eager")
    assert "skipped" not in ended.stdout


def tensors_of(fused: FusedBottleneck) -> list[torch.Tensor | None]:
    """In the order of the operator."""
    names = ("expand", "expand_bias", "depthwise", "depthwise_bias", "project", "project_bias")
    return [getattr(fused, name) for name in names]


@DTYPES
@pytest.mark.parametrize("case", [CASES[3], CASES[7]], ids=str)
def test_nothing_around_an_image_is_read_or_written(case, dtype):
    """The image and the result are parts of larger tensors, which hold NaN everywhere else."""
    block = block_of(case, dtype)
    batch, (height, width), (inward, expanded, outward) = case.batch, case.size, case.channels
    around = torch.full((batch + 2, height, width, inward), math.nan, dtype=dtype)
    images = around[1:-1].normal_()
    strided = (-(-height // case.stride), -(-width // case.stride))
    results = torch.full((batch + 2, *strided, outward), math.nan, dtype=dtype)
    torch.ops.stm_fast.inverted_bottleneck(
        results[1:-1],
        images,
        *tensors_of(FusedBottleneck(block)),
        expanded,
        case.kernel,
        case.stride,
        case.residual,
    )
    check(results[1:-1].permute(0, 3, 1, 2), images.permute(0, 3, 1, 2), block)
    assert results[0].isnan().all()
    assert results[-1].isnan().all()


@DTYPES
def test_nan_and_infinity_spread_only_as_far_as_the_convolution_reaches(dtype):
    """With a number of channels that fills neither a vector nor a pair, so that the next pixel might be read."""
    case = Case((9, 10), (5, 35, 7))
    x, block = image_of(case, dtype), block_of(case, dtype)
    fused = FusedBottleneck(block)
    clean = fused(x)
    for bad in (math.nan, math.inf):
        spoiled = x.clone()
        spoiled[0, 0, 4, 5] = bad
        found, expected = fused(spoiled), in_float64(block)(spoiled.double())
        seen = torch.zeros(9, 10, dtype=torch.bool)
        seen[3:6, 4:7] = True
        assert torch.equal(found[..., ~seen], clean[..., ~seen])
        assert torch.equal(found.isnan(), expected.isnan())


@DTYPES
def test_bottlenecks_read_any_layout(dtype):
    x, fused = image_of(CASES[1], dtype), FusedBottleneck(block_of(CASES[1], dtype))
    expected = fused(x)
    assert torch.equal(fused(x.contiguous()), expected)
    wide = x.repeat_interleave(2, dim=3)[..., ::2]
    assert torch.equal(fused(wide), expected)


def test_images_at_unaligned_addresses():
    """Kernels that multiply pairs of bfloat16 numbers in place must not assume that pairs are aligned."""
    case = CASES[2]
    x, fused = image_of(case, torch.bfloat16), FusedBottleneck(block_of(case, torch.bfloat16))
    shifted = torch.empty(x.numel() + 1, dtype=torch.bfloat16)[1:].view(1, *case.size, 16).permute(0, 3, 1, 2)
    expected = fused(x)
    assert torch.equal(fused(shifted.copy_(x)), expected)


@DTYPES
def test_threads_do_not_change_a_result(dtype):
    x, fused = image_of(CASES[12], dtype), FusedBottleneck(block_of(CASES[12], dtype))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(fused(x))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_images_and_no_pixels():
    strided = FusedBottleneck(block_of(Case((4, 4), (8, 48, 24), stride=2), torch.float32))
    assert strided(torch.empty(0, 8, 4, 4)).shape == (0, 24, 2, 2)
    fused = FusedBottleneck(block_of(Case((4, 4), (8, 48, 24)), torch.float32))
    assert fused(torch.empty(2, 8, 0, 4)).shape == (2, 24, 0, 4)


def test_unsupported_blocks_and_inputs_are_refused():
    case = Case((4, 4), (8, 48, 24))
    x, block = image_of(case, torch.float32), block_of(case, torch.float32)
    fused = FusedBottleneck(block)
    with pytest.raises(InputError, match=r"x: found torch\.bfloat16, expected that of the weights, torch\.float32"):
        fused(x.bfloat16())
    for odd in (InvertedBottleneck(8, 8, 7, 1, 6), InvertedBottleneck(8, 8, 3, 3, 6), deepcopy(block).half()):
        with pytest.raises(InputError, match="block: found SameConv"):
            FusedBottleneck(odd)
    with pytest.raises(InputError, match=r"conv: found Stem.*, expected a kernel of 3 x 3 or 5 x 5, stride 1 or 2"):
        FusedStem(Stem(8, 8, 1, 1))
    with pytest.raises(RuntimeError, match=r"expand: found \["):
        fused(x[:, :7])
    plain = FusedBottleneck(block_of(Case((4, 4), (8, 8, 24)), torch.float32))
    with pytest.raises(RuntimeError, match="expanded: does not fit x"):
        plain(x[:, :7])
    fused.project_bias = fused.project_bias.bfloat16()
    with pytest.raises(RuntimeError, match="project_bias: its dtype does not match"):
        fused(x)
    stem = FusedStem(Stem(3, 8, 3, 1))
    with pytest.raises(RuntimeError, match="x: expected float32 or bfloat16"):
        stem(torch.randn(1, 3, 6, 6).double())
    with pytest.raises(RuntimeError, match=r"weight: found \["):
        stem(torch.randn(1, 4, 6, 6))


def test_operators_refuse_tensors_that_do_not_fit():
    x, out = torch.randn(1, 4, 4, 8), torch.empty(1, 4, 4, 24)
    tensors = tensors_of(FusedBottleneck(block_of(Case((4, 4), (8, 48, 24)), torch.float32)))
    run = torch.ops.stm_fast.inverted_bottleneck
    with pytest.raises(RuntimeError, match="residual: x does not fit out"):
        run(out, x, *tensors, 48, 3, 1, True)
    with pytest.raises(RuntimeError, match=r"project: found \["):
        run(torch.empty(1, 4, 4, 40), x, *tensors, 48, 3, 1, False)
    with pytest.raises(RuntimeError, match="stride: found 3, expected 1 or 2"):
        run(out, x, *tensors, 48, 3, 3, False)
    with pytest.raises(RuntimeError, match="kernel: found 0, expected 3 or 5"):
        run(out, x, *tensors, 48, 0, 1, False)


@pytest.mark.slow
def test_operators_are_registered_correctly():
    fused = FusedBottleneck(block_of(Case((6, 5), (8, 48, 24), stride=2), torch.float32))
    images, out = torch.randn(1, 6, 5, 8), torch.empty(1, 3, 3, 24)
    arguments = (out, images, *tensors_of(fused), 48, 3, 2, False)
    torch.library.opcheck(torch.ops.stm_fast.inverted_bottleneck, arguments)
    stem = FusedStem(Stem(8, 16, 3, 2))
    arguments = (torch.empty(1, 3, 3, 16), images, stem.weight, stem.bias, 3, 2)
    torch.library.opcheck(torch.ops.stm_fast.convolution_relu6, arguments)


@DTYPES
@pytest.mark.parametrize("name", LITE)
def test_a_trunk_of_fused_parts_matches_the_original(name, dtype):
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


def test_parts_of_other_modules_are_not_replaced():
    odd = InvertedBottleneck(8, 8, 7, 1, 6)
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sequential(InvertedBottleneck(8, 16, 3, 2, 6)), odd)
    replace_bottlenecks(network)
    assert isinstance(network[0], nn.Conv2d)
    assert isinstance(network[1][0], FusedBottleneck)
    assert network[2] is odd
    assert not any(isinstance(module, FusedStem) for module in network.modules())
