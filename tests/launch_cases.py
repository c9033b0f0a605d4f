"""The launches of reads at 480p on sm_90: kernels, tiles and grids, and the bytes that are copied beforehand.

Not collected directly: test_launch.py runs it in a separate process, on the launchless device.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gate import sass
from launchless import LAUNCHES, Launched, compile_source, counted_copies
from stm_fast.config import MemoryConfig
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.memory import MemoryBank, read_parts
from stm_fast.network import stm_lite2, stm_resnet50
from stm_fast.network.deploy import for_inference
from stm_fast.ops import MemoryRead, memory_read
from stm_fast.ops.adapters import (
    AOTLongTermAttention,
    MiVOSMemoryReader,
    STCNMemoryReader,
    get_affinity,
    readout,
    stcn_read,
    xmem_read,
)

BF16, HEIGHT, WIDTH, FRAMES = torch.bfloat16, 30, 54, 20
M = HEIGHT * WIDTH
N = FRAMES * M
PROCESSORS = 132
DEVICE = "cuda"
HOPPER, HOPPER_TILE = "_forward_hopper_kernel", (64, 64, 128, 512, 2)


class Traced(NamedTuple):
    """The kernels that some code launched, and the bytes written by PyTorch's own copies, by operator."""

    launches: list[Launched]
    copies: Counter[str]

    def of(self, kernel: str) -> list[Launched]:
        return [launch for launch in self.launches if launch.kernel == kernel]

    @property
    def transposed(self) -> list[tuple[int, ...]]:
        """The shapes of the tensors that were transposed into rows."""
        return [tuple(launch.tensors["target"].shape) for launch in self.of("_rows_kernel")]

    def tile(self, kernel: str) -> tuple[int, ...]:
        """Of the only launch of a kernel: queries, rows, key columns and value columns per program, and stages."""
        (launch,) = {tuple(_tile(launch)) for launch in self.of(kernel)}
        return launch


def _tile(launch: Launched) -> Iterator[int]:
    constants = launch.constants
    if launch.kernel == HOPPER:
        tile = constants["TILE"]
        yield from (tile.block_m, tile.block_n, tile.block_k, 2 * tile.half, tile.stages)
        return
    yield constants["TILE"].block_m
    yield constants["TILE"].block_n
    if "KEYS" in constants:
        yield constants["KEYS"].width
        yield constants["VALUES"].width
    yield launch.options["num_stages"]


_traced: list[Launched] = []  # of all tests: their kernels are compiled at the end


@contextmanager
def traced() -> Iterator[Traced]:
    first, found = len(LAUNCHES), Traced([], Counter())
    with counted_copies() as copies:
        yield found
    found.launches.extend(LAUNCHES[first:])
    found.copies.update(copies)
    _traced.extend(found.launches)


def channels(*shape: int, dtype: torch.dtype = BF16, grad: bool = False) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=DEVICE).requires_grad_(grad)


def programs(launch: Launched) -> int:
    return launch.grid[0] * launch.grid[1] * launch.grid[2]


def assert_covers(launch: Launched, queries: int, columns: int, objects: int) -> None:
    """The grid covers queries and columns in whole tiles, times the parts of the memory."""
    value_programs = 1
    if launch.kernel == "_forward_kernel":
        value_programs = launch.constants["VALUE_PROGRAMS"]
        assert value_programs == -(-launch.constants["CV"] // columns)
    assert launch.grid[0] == -(-M // queries)
    assert launch.grid[1] % value_programs == 0
    assert launch.grid[2] == objects


@pytest.fixture
def bank_reads(monkeypatch) -> list[Traced]:
    """A trace of every read of a MemoryBank."""
    found = []

    def tracing(read: Callable[..., object], *args: object, **options: object) -> object:
        with traced() as trace:
            result = read(*args, **options)
        found.append(trace)
        return result

    for name in ("memory_read", "memory_read_quantized"):
        monkeypatch.setattr(read_parts, name, partial(tracing, getattr(read_parts, name)))
    return found


@pytest.mark.parametrize(
    ("network", "tile"),
    [(stm_resnet50, (128, 64, 128, 256, 3)), (stm_lite2, (128, 64, 96, 64, 3))],
    ids=["stm_resnet50", "the package's weights"],
)
def test_the_engine(network, tile, bank_reads):
    """At the second frame, which reads the first."""
    model = for_inference(network(), dtype=BF16)
    segmenter = VideoSegmenter(model)
    segmenter.step(torch.rand(3, 480, 854), torch.ones(480, 854, dtype=torch.uint8))
    segmenter.step(torch.rand(3, 480, 854))
    (read,) = bank_reads
    assert read.tile("_forward_kernel") == tile
    assert_covers(read.of("_forward_kernel")[0], tile[0], tile[3], objects=1)
    assert {launch.kernel for launch in read.launches} <= {"_forward_kernel", "_combine_kernel"}
    assert not read.copies


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_a_bank_of_twenty_frames(last, bank_reads):
    """Rows of the bank are never copied, whatever its capacity; a channels-first query is."""
    bank = MemoryBank(frames=FRAMES + 5)
    layout = torch.channels_last if last else torch.contiguous_format
    key, value = (channels(3, width, HEIGHT, WIDTH).contiguous(memory_format=layout) for width in (128, 512))
    for _ in range(FRAMES):
        bank.append(key, value)
    bank.read(key[:1])
    (read,) = bank_reads
    assert read.tile(HOPPER) == HOPPER_TILE
    (launch,) = read.of(HOPPER)
    assert_covers(launch, 64, 512, objects=3)
    assert programs(launch) >= PROCESSORS / 2
    assert read.transposed == ([] if last else [(1, M, 128)])
    assert not read.copies


@pytest.mark.parametrize("storage", ["int8", "fp8"])
@pytest.mark.parametrize("widths", [(128, 512), (80, 128)], ids=str)
def test_a_quantized_bank(storage, widths, bank_reads):
    bank = MemoryBank(MemoryConfig(storage=storage))
    key, value = (
        torch.ones(1, width, HEIGHT, WIDTH, dtype=BF16, device=DEVICE).contiguous(memory_format=torch.channels_last)
        for width in widths
    )
    for _ in range(2):
        bank.append(key, value)
    bank.read(key)
    (read,) = bank_reads
    assert {launch.kernel for launch in read.launches} <= {"_forward_quantized_kernel", "_combine_kernel"}
    (launch,) = read.of("_forward_quantized_kernel")
    assert launch.constants["TILE"].block_n == 64
    assert not read.copies


def test_memory_read_as_a_layer():
    key, value = channels(3, 128, FRAMES, HEIGHT, WIDTH), channels(3, 512, FRAMES, HEIGHT, WIDTH)
    query, query_value = channels(3, 128, HEIGHT, WIDTH), channels(3, 512, HEIGHT, WIDTH)
    with traced() as read:
        MemoryRead()(key, value, query, query_value)
    assert read.transposed == [(3, M, 128), (3, N, 128), (3, N, 512)]
    assert read.tile(HOPPER) == HOPPER_TILE
    assert_covers(read.of(HOPPER)[0], 64, 512, objects=3)
    assert not read.copies


def test_stcn():
    key, query = channels(1, 64, FRAMES, HEIGHT, WIDTH), channels(1, 64, HEIGHT, WIDTH)
    value, query_value = channels(1, 512, FRAMES, HEIGHT, WIDTH), channels(1, 512, HEIGHT, WIDTH)
    reader = STCNMemoryReader()
    with traced() as training:
        reader.readout(reader.get_affinity(key, query), value, query_value)
    assert training.transposed == [(1, M, 64), (1, N, 64), (1, N, 512)]
    assert training.tile("_forward_kernel") == (128, 64, 64, 256, 3)
    assert not training.copies
    with traced() as test_time:
        stcn_read(key.flatten(2), query.flatten(2), value.flatten(2).expand(3, -1, -1))
    assert test_time.transposed == [(1, M, 64), (1, N, 64), (1, N, 512)]
    assert test_time.tile("_topk_kernel") == (64, 64, 2)


@pytest.mark.parametrize("value_dim", [512, 256], ids=["XMem and DEVA", "Cutie"])
def test_xmem_and_its_family(value_dim):
    key, query = channels(1, 64, FRAMES, HEIGHT, WIDTH), channels(1, 64, HEIGHT, WIDTH)
    shrinkage = channels(1, 1, FRAMES, HEIGHT, WIDTH, dtype=torch.float32)
    selection = channels(1, 64, HEIGHT, WIDTH, dtype=torch.float32)
    value = channels(1, value_dim, FRAMES, HEIGHT, WIDTH)
    with traced() as training:
        readout(get_affinity(key, shrinkage, query, selection), value)
    assert training.transposed == [(1, M, 64), (1, M, 64), (1, N, 64), (1, N, value_dim)]
    assert training.tile("_forward_kernel") == (64, 64, 64, 256, 3)
    assert not training.copies
    flat = (key.flatten(2), shrinkage.flatten(2), query, selection, value.flatten(2))
    with traced() as test_time:
        xmem_read(*flat, return_usage=True)
    assert test_time.tile("_topk_kernel") == (64, 64, 2)
    assert test_time.transposed == training.transposed


@pytest.mark.parametrize("top_k", [50, None])
def test_mivos(top_k):
    key, value = channels(2, 128, FRAMES, HEIGHT, WIDTH), channels(2, 512, FRAMES, HEIGHT, WIDTH)
    with traced() as read:
        MiVOSMemoryReader(top_k)(key, value, channels(1, 128, HEIGHT, WIDTH))
    assert read.transposed == [(1, M, 128), (2, N, 128), (2, N, 512)]
    if top_k is None:
        assert read.tile(HOPPER) == HOPPER_TILE
        assert not read.copies
    else:
        assert read.tile("_topk_kernel") == (64, 64, 2)


def test_aot():
    """Heads are views that are already rows; nothing is copied before the read."""
    attention = AOTLongTermAttention(256, use_linear=False).to(BF16)
    query, memory = channels(M, 1, 256), channels(N, 1, 256)
    with torch.no_grad(), traced() as read:
        attention(query, memory, memory)
    assert read.transposed == []
    assert read.tile("_forward_kernel") == (128, 64, 32, 32, 3)
    assert_covers(read.of("_forward_kernel")[0], 128, 128, objects=8)
    # the heads of the result, put side by side
    assert read.copies.total() == M * 256 * 2


@pytest.mark.parametrize("first", [True, False], ids=["channels first", "rows"])
def test_training(first):
    """Both passes copy: keeping the copies between them would take as much memory again as keys and values."""
    frames = 2
    rows = frames * M
    shapes = (M, 128), (rows, 128), (rows, 512)
    leaves = [channels(2, *(shape[::-1] if first else shape), grad=True) for shape in shapes]
    tensors = [leaf.mT for leaf in leaves] if first else leaves
    with traced() as read:
        out = memory_read(*tensors)
    assert isinstance(out, Tensor)
    upstream = torch.empty_like(out)
    with traced() as backward:
        torch.autograd.grad(out, leaves, upstream)
    assert read.tile(HOPPER) == HOPPER_TILE
    assert not read.copies
    for trace in (read, backward):
        assert trace.transposed == ([(2, *shape) for shape in shapes] if first else [])
    kernels = [launch.kernel for launch in backward.launches if launch.kernel != "_rows_kernel"]
    products = ["_grad_value_kernel", "_grad_key_kernel", "_grad_query_kernel"]
    assert kernels == ["_delta_kernel", "_grad_scores_kernel", *products]
    tiles = [launch.constants["TILE"] for launch in backward.launches[-4:]]
    assert [(tile.block_m, tile.block_n) for tile in tiles] == [(128, 128), (64, 128), (64, 128), (128, 64)]
    assert {launch.options["num_warps"] for launch in backward.launches[-4:]} == {8}


def test_nothing_loads_two_bytes_in_a_loop():
    """Checks all kernels that the tests above launched, so it must stay the last test of this file."""
    distinct = {
        str((launch.kernel, launch.source.signature, launch.constants, launch.options)): launch for launch in _traced
    }
    launches = [launch for launch in distinct.values() if launch.kernel != "_rows_kernel"]
    assert {HOPPER, "_forward_kernel", "_topk_kernel", "_grad_key_kernel", "_forward_quantized_kernel"} <= {
        launch.kernel for launch in launches
    }
    with ThreadPoolExecutor(2) as pool:
        listings = list(pool.map(_listing, launches))
    for launch, listing in zip(launches, listings, strict=True):
        name = f"{launch.kernel} {launch.constants} {launch.options}"
        assert sass.narrow_loads(sass.in_loops(listing)) == 0, name
        if launch.kernel.startswith(("_forward", "_grad")) and launch.kernel != HOPPER:
            loop = sass.main_loop(listing)
            assert any("GMMA" in line for line in loop), f"{name}: no wgmma"
            assert any("LDGSTS" in line for line in loop), f"{name}: no asynchronous copies"
        if launch.kernel == HOPPER:
            assert sum("UTMALDG" in line for line in sass.in_loops(listing)) >= 3, f"{name}: no copies by TMA"


def _listing(launch: Launched) -> list[str]:
    return sass.disassemble(compile_source(launch).asm["cubin"])
