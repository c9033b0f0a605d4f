"""How a call is measured: its time, in interleaved rounds of several, its memory at the peak, and why it could not run.

Memory is counted on a GPU as the allocator does, on a CPU as Linux does.
"""

import gc
import re
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.workload import Inputs, Read, Workload, in_layout, lacks_instructions, make_inputs
from stm_fast.heap import map_large_blocks, trim_heap

Results = tuple[Tensor, ...]
# larger than the L2 of any GPU; written several times, it also gives the host time to queue the timed call
_FLUSH_BYTES, _FLUSHES = 2**28, 4
_MOST_ROUNDS = 200
_SMALL = 256  # rows of a matrix that shows quickly how fast a CPU multiplies
_LONGEST_REASON = 400  # characters
_WHERE = re.compile(r"\s*\(Triggered internally at .*?\)")
_TRACED = re.compile(r"Developer debug context: (?:raised exception )?(.+)")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Call(NamedTuple):
    """A pass of one route: `before` is not timed and makes what `timed` takes."""

    before: Callable[[Inputs], Any]
    timed: Callable[[Any], Results]


class Reading(NamedTuple):
    """One measurement, in seconds."""

    seconds: float
    host_seconds: float  # until the call returned; on a GPU its kernels may not have run yet


def make_call(pass_name: str, read: Read) -> Call:
    """forward and top-k: the read without gradients. backward: the gradients alone, after an untimed forward.

    The results are the read, or the gradients of query and memory followed by the read.
    """
    if pass_name == "backward":
        return Call(lambda inputs: _forward_with_graph(read, inputs), _gradients)
    return Call(lambda inputs: inputs, lambda inputs: _forward(read, inputs))


def _forward(read: Read, inputs: Inputs) -> Results:
    with torch.no_grad():
        return (read(inputs.query, *inputs.memory),)


def _forward_with_graph(read: Read, inputs: Inputs) -> tuple[Tensor, list[Tensor], Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (inputs.query, *inputs.memory)]
    return read(*leaves), leaves, inputs.upstream


def _gradients(state: tuple[Tensor, list[Tensor], Tensor]) -> Results:
    return (*torch.autograd.grad(*state), state[0])


class WallClock:
    """Wall time of a call on the CPU."""

    def measure(self, call: Call, inputs: Inputs) -> Reading:
        """Times one call."""
        state = call.before(inputs)
        start = time.perf_counter()
        call.timed(state)
        seconds = time.perf_counter() - start
        return Reading(seconds, seconds)


class CudaClock:
    """Time between two CUDA events around a call that finds its inputs in none of the GPU's caches."""

    def __init__(self) -> None:
        self._flushed = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def measure(self, call: Call, inputs: Inputs) -> Reading:
        """Times one call."""
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)  # type: ignore[no-untyped-call]
        state = call.before(inputs)
        for _ in range(_FLUSHES):
            self._flushed.zero_()
        start.record()
        host_start = time.perf_counter()
        call.timed(state)
        host_seconds = time.perf_counter() - host_start
        end.record()
        torch.cuda.synchronize()
        return Reading(start.elapsed_time(end) / 1e3, host_seconds)


def make_clock(device: str) -> WallClock | CudaClock:
    """The clock of a kind of device."""
    return CudaClock() if device == "cuda" else WallClock()


def interleaved(
    variants: Sequence[Callable[[int], Reading]], seconds: float, rounds: int, end: float | None = None
) -> list[list[Reading] | str]:
    """The readings of every variant, or why it failed, in rounds of a, b, c: whatever slows the machine slows them all.

    Each variant is given the number of the round. There are rounds for `seconds`, and `rounds` of them at the least;
    once every variant has one reading, none begins after `end` on the monotonic clock.
    """
    found: list[list[Reading] | str] = [[] for _ in variants]
    start = time.monotonic()
    for index in range(max(rounds, _MOST_ROUNDS)):
        now = time.monotonic()
        if index and ((index >= rounds and now - start > seconds) or (end is not None and now > end)):
            break
        for place, variant in enumerate(variants):
            readings = found[place]
            if isinstance(readings, str):
                continue
            try:
                readings.append(variant(index))
            except Exception as error:  # for example out of memory once the others are there
                found[place] = unsupported_reason(error)
    return found


def quantiles(readings: Sequence[Reading]) -> dict[str, Any]:
    """The fields of a ReadRow that say how long it took."""
    seconds = torch.tensor([reading.seconds for reading in readings], dtype=torch.float64)
    low, median, high = seconds.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    host = statistics.median(reading.host_seconds for reading in readings)
    return {"seconds": median, "seconds_20": low, "seconds_80": high, "host_seconds": host, "rounds": len(readings)}


def matrix_product(dtype: torch.dtype, device: str, rows: int | None = None) -> tuple[Call, int]:
    """A square torch.mm, the ceiling of every rate, and its FLOP; it has had its first call."""
    size = rows or _product_rows(dtype, device)
    product = _square_product(size, dtype, device)
    product.timed(None)
    return product, 2 * size**3


def _product_rows(dtype: torch.dtype, device: str) -> int:
    """As many as keep the device busy; few on a CPU that has no instructions for the dtype."""
    if device == "cuda":
        return 8192
    return _SMALL if lacks_instructions(dtype, 2 * _SMALL**3 / _small_product_seconds(dtype)) else 1024


def _square_product(size: int, dtype: torch.dtype, device: str) -> Call:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return Call(lambda inputs: None, lambda state: (torch.mm(left, right),))


def _small_product_seconds(dtype: torch.dtype) -> float:
    product = _square_product(_SMALL, dtype, "cpu")
    return min(timeit.repeat(lambda: product.timed(None), number=1, repeat=3))


def unsupported_reason(error: Exception, messages: Sequence[str] = ()) -> str:
    """One line: the error, and the warnings in which PyTorch says why each of its attention backends cannot run."""
    reasons = [f"{type(error).__name__}: {_gist(str(error))}", *map(_gist, messages)]
    # "... not used because:" announces the warning that follows
    kept = [reason for reason in dict.fromkeys(reasons) if not reason.endswith("because:")]
    text = "; ".join(kept)
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."


def _gist(message: str) -> str:
    """The first line, or what the compiler met while it traced."""
    traced = _TRACED.search(message)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "no message")
    return _WHERE.sub("", traced[1] if traced else first)


# memory


def counts_memory(device: str) -> bool:
    """Whether `peak_memory` can measure; of the memory of a CPU only Linux tells the peak of a part of a run."""
    return device.startswith("cuda") or CLEAR.exists()


def resident_bytes(name: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


@dataclass
class Peak:
    """What was measured of a block, once it has ended."""

    bytes: int = 0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """How far a `with` block goes beyond what was allocated before it, on a GPU or, on Linux, in the host's memory."""
    cuda, found = device.startswith("cuda"), Peak()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        gc.collect()
        trim_heap()
        CLEAR.write_text("5")  # the peak starts anew at what is resident now
        before = resident_bytes("VmRSS")
    yield found
    peak = torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM")
    found.bytes = max(0, peak - before)


def extra_bytes(device: str, call: Call, inputs: Inputs) -> int:
    """The most that one call takes beyond its inputs and results; it has had its first call."""
    with peak_memory(device) as memory:
        results = call.timed(call.before(inputs))
    return max(0, memory.bytes - _nbytes(results))


def extra_cpu_bytes(route: str, workload: Workload) -> int | None:
    """The same in a fresh process on the CPU; None where the system does not count or the process fails.

    It is forked from a process that has imported PyTorch and computed nothing.
    """
    if not counts_memory("cpu"):
        return None
    processes = get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, processes) as pool:
        try:
            return pool.submit(_extra_bytes_here, route, workload, torch.get_num_threads()).result()
        except Exception:  # whatever a library raises, or the process ended, perhaps out of memory
            return None


def _extra_bytes_here(name: str, workload: Workload, threads: int) -> int:
    torch.set_num_threads(threads)
    map_large_blocks()  # or the peak would depend on where in the heap they are, and count what is free already
    route = ROUTES[name]
    read = route.build(workload)
    assert not isinstance(read, str)
    call = make_call(workload.pass_name, read)
    inputs = in_layout(make_inputs(workload.shape, workload.dtype, "cpu", seed=0), route.layout)
    call.timed(call.before(inputs))  # compiles, and loads what stays loaded
    return extra_bytes("cpu", call, inputs)


def _nbytes(results: Results) -> int:
    return sum(result.nbytes for result in results)
