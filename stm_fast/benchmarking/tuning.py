"""Times tiles of the Triton kernels on the GPU at hand and writes the faster ones as a table (stm_fast.kernels.tuned).

A climb: from the tile of configs.py to the best of its neighbors, one field changed, until none is faster.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeVar

import torch

from stm_fast.benchmarking.measuring import Call, CudaClock, Results, WallClock, make_call, unsupported_reason
from stm_fast.benchmarking.records import Record, describe_machine
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import Shape
from stm_fast.benchmarking.workload import KEY_DIM, VALUE_DIM, Inputs, Workload, dtype_name, make_inputs
from stm_fast.kernels.configs import CONFIG_OF
from stm_fast.kernels.launch import arithmetic_of
from stm_fast.kernels.targets import target_of
from stm_fast.kernels.tiles import BackwardConfig, Choice, ForwardConfig
from stm_fast.kernels.tuned import Kernel, using

Tile = TypeVar("Tile")
Config = ForwardConfig | BackwardConfig
Report = Callable[[str], None]

GAIN = 0.02  # a tile that wins less is noise
_ROUNDS = 7  # of a tile and a shape, the median counts
_DIFFERENT = 0.05  # relative: further from the tile of configs.py than the sums' order explains
_REGISTERS = 192  # of a thread, for accumulators: beyond, all of them are spilled, and compiling takes long

# smallest and largest of each field; stages change by one, the others by a factor of two
_LIMITS = {
    "block_m": (16, 128),
    "block_n": (16, 128),
    "block_k": (16, 128),
    "block_v": (32, 512),
    "block_c": (32, 256),
    "accumulators": (1, 4),
    "num_warps": (4, 8),
    "num_stages": (1, 4),
}
# the kernels of a pass that have a tile of their own
_KERNELS: dict[str, tuple[Kernel, ...]] = {
    "forward": ("forward",),
    "backward": ("backward", "grad_value", "grad_key", "grad_query"),
    "top-k": ("top-k",),
}
# what the time of a kernel depends on
_FIELDS: dict[Kernel, tuple[str, ...]] = {
    "forward": ("block_m", "block_n", "block_v", "accumulators", "num_warps", "num_stages"),
    "backward": ("block_m", "block_n", "block_k", "block_v", "num_warps", "num_stages"),
    "grad_value": ("block_m", "block_n", "block_v", "num_warps", "num_stages"),
    "grad_key": ("block_m", "block_n", "block_c", "num_warps", "num_stages"),
    "grad_query": ("block_m", "block_n", "block_c", "num_warps", "num_stages"),
    "top-k": ("block_m", "block_n", "block_k", "num_warps", "num_stages"),
}


@dataclass(frozen=True)
class TileRow:
    """A tile that is faster than that of configs.py."""

    kernel: str
    choice: dict[str, Any]  # the fields of kernels.tiles.Choice
    tile: dict[str, int]
    instead_of: dict[str, int]  # the tile of configs.py
    relative_time: float
    tried: int  # how many tiles were timed


class Found(NamedTuple):
    """Where a climb ended."""

    tile: Any
    time: float
    tried: int


def climb(start: Tile, neighbors: Callable[[Tile], Iterable[Tile]], time_of: Callable[[Tile], float]) -> Found:
    """The tile from which no neighbor is faster by GAIN; none is timed twice, and the time of one that fails is inf."""
    times: dict[Any, float] = {start: time_of(start)}
    best = start
    while True:
        around = [tile for tile in neighbors(best) if tile not in times]
        times |= {tile: time_of(tile) for tile in around}
        fastest = min(around, key=times.__getitem__, default=best)
        if times[fastest] >= (1 - GAIN) * times[best]:
            return Found(best, times[best], len(times))
        best = fastest


def neighbors_of(kernel: Kernel, tile: Config) -> Iterator[Config]:
    """Tiles that differ in one field, and forward tiles of as many columns in fewer or more accumulators."""
    for name in _FIELDS[kernel]:
        size, (least, most) = getattr(tile, name), _LIMITS[name]
        for other in (size - 1, size + 1) if name == "num_stages" else (size // 2, size * 2):
            if least <= other <= most:
                yield from _allowed(replace(tile, **{name: other}))
    if isinstance(tile, ForwardConfig):
        columns = tile.accumulators * tile.block_v
        for accumulators in (1, 2, 4):
            if accumulators < tile.accumulators or (accumulators > tile.accumulators and columns // accumulators >= 64):
                yield from _allowed(replace(tile, accumulators=accumulators, block_v=columns // accumulators))


def _allowed(tile: Config) -> Iterator[Config]:
    width = getattr(tile, "value_width", 0)
    if width <= VALUE_DIM and tile.block_m * width <= _REGISTERS * 32 * tile.num_warps:
        yield tile


def tune(
    shapes: Sequence[Shape],
    dtypes: Sequence[torch.dtype],
    passes: Sequence[str],
    clock: CudaClock | WallClock,
    report: Report,
    device: str = "cuda",
) -> Record[TileRow]:
    """The tiles that are faster than those of configs.py by GAIN or more, as stm_fast.kernels.tuned reads them.

    A tile's time is the geometric mean, over the shapes, of its time relative to the tile of configs.py.

    Args:
        clock, device: how and where calls are timed.
        report: called with a line about every tile.
    """
    architecture = choice_of(dtypes[0], device).architecture
    settings = {"architecture": architecture, "shapes": [shape.name for shape in shapes], "passes": list(passes)}
    settings["dtypes"] = [dtype_name(dtype) for dtype in dtypes]
    record = Record[TileRow](describe_machine(device), settings)
    kernels = [(pass_name, kernel) for pass_name in passes for kernel in _KERNELS[pass_name]]
    for dtype, (pass_name, kernel) in product(dtypes, kernels):
        workloads = [Workload(shape, dtype, pass_name, device) for shape in shapes]
        timed = _Timed(kernel, workloads, choice_of(dtype, device), clock, report)
        found = climb(timed.start, partial(neighbors_of, kernel), timed.relative)
        # the first and the last tile were timed minutes apart: once more, side by side
        time = timed.relative(found.tile) / timed.relative(timed.start)
        # and faster than what reads without a table, which on sm_90 may be a kernel without such a tile
        if max(time, found.time) <= 1 - GAIN:
            tile, start = asdict(found.tile), asdict(timed.start)
            record.rows.append(TileRow(kernel, timed.choice._asdict(), tile, start, time, found.tried))
    return record


def choice_of(dtype: torch.dtype, device: str) -> Choice:
    """What the kernels choose a tile for in the reads of a benchmark."""
    architecture = target_of(torch.empty(0, device=device).device).architecture
    return Choice(architecture, arithmetic_of(dtype), KEY_DIM, VALUE_DIM, regular=True, weighted=False)


def default_tile(kernel: Kernel, choice: Choice) -> Config:
    """The tile of configs.py, whatever the user's table has."""
    with using({}):
        return CONFIG_OF[kernel](choice)


class _Timed:
    """One pass over some shapes in one dtype, one of its kernels with one tile or another."""

    def __init__(
        self,
        kernel: Kernel,
        workloads: Sequence[Workload],
        choice: Choice,
        clock: CudaClock | WallClock,
        report: Report,
    ) -> None:
        self._kernel, self._clock, self._report = kernel, clock, report
        dtype = workloads[0].dtype
        self._calls = [(_call_of(work), make_inputs(work.shape, dtype, work.device, seed=0)) for work in workloads]
        self.choice, self.start = choice, default_tile(kernel, choice)
        with using({}):
            self._expected = [call.timed(call.before(inputs)) for call, inputs in self._calls]
            self._seconds = [self._measure(call, inputs) for call, inputs in self._calls]

    def relative(self, tile: Config) -> float:
        """Its time relative to `start`, the geometric mean over all shapes; infinite where it fails or is wrong."""
        try:
            with using({(self._kernel, self.choice): tile}):
                time = math.exp(statistics.fmean(map(self._logarithm, self._calls, self._expected, self._seconds)))
        except Exception as error:  # whatever Triton raises, for example too much shared memory
            self._report(f"{self._kernel}: {tile}: {unsupported_reason(error)}")
            return math.inf
        self._report(f"{self._kernel}: {tile}: {time:.3f} of the time")
        return time

    def _logarithm(self, call_and_inputs: tuple[Call, Inputs], expected: Results, seconds: float) -> float:
        call, inputs = call_and_inputs
        if not _same(call.timed(call.before(inputs)), expected):
            raise ArithmeticError("a wrong result")
        return math.log(self._measure(call, inputs) / seconds)

    def _measure(self, call: Call, inputs: Inputs) -> float:
        return statistics.median(self._clock.measure(call, inputs).seconds for _ in range(_ROUNDS))


def _call_of(workload: Workload) -> Call:
    read = ROUTES["triton"].build(workload)
    assert not isinstance(read, str)
    return make_call(workload.pass_name, read)


def _same(results: Results, expected: Results) -> bool:
    """Whether every result is as close as another order of sums explains; NaN is not."""
    pairs = zip(results, expected, strict=True)
    return all((found - right).float().norm() <= _DIFFERENT * right.float().norm() for found, right in pairs)
