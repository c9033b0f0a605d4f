"""One timed call, on a CPU or on a GPU, and what is timed of a pass."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm_fast.benchmarking.attention import Read
from stm_fast.benchmarking.inputs import Inputs

Results = tuple[Tensor, ...]
# larger than the L2 of any GPU; written several times over, it also gives the host time to queue the timed call
_FLUSH_BYTES, _FLUSHES = 2**28, 4

_SMALL = 256  # rows of a matrix that tells quickly how fast a CPU multiplies


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


def matrix_product(dtype: torch.dtype, device: str, rows: int | None = None) -> tuple[Call, int]:
    """A square torch.mm, the ceiling of every rate beside it, and its FLOP; it has had its first call."""
    size = rows or (8192 if device == "cuda" else 1024)
    if (
        rows is None
        and device == "cpu"
        and dtype.itemsize == 2
        and _small_product_seconds(dtype) * (size / _SMALL) ** 3 > 1
    ):
        size = _SMALL
    product = _square_product(size, dtype, device)
    product.timed(None)
    return product, 2 * size**3


def _product_rows(dtype: torch.dtype, device: str) -> int:
    if device == "cuda":
        return 8192
    rows = 1024
    slow = dtype.itemsize == 2 and _small_product_seconds(dtype) * (rows / _SMALL) ** 3 > 1
    return _SMALL if slow else rows


def _square_product(size: int, dtype: torch.dtype, device: str) -> Call:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return Call(lambda inputs: None, lambda state: (torch.mm(left, right),))


def _small_product_seconds(dtype: torch.dtype) -> float:
    """Long on a CPU without instructions for the dtype, where a large product is no faster a FLOP."""
    product = _square_product(_SMALL, dtype, "cpu")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        product.timed(None)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
