"""How much memory something takes at its peak: on a GPU as the allocator counts it, on a CPU as Linux does."""

import ctypes
import gc
import re
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.timing import Call, Results, make_call
from stm_fast.benchmarking.workload import Inputs, Workload, in_layout, make_inputs

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_M_MMAP_THRESHOLD = -3  # of malloc.h
_MOST_SECONDS = 300.0


def resident_bytes(name: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def trim_heap() -> None:
    """Returns to the system what the allocator keeps for later."""
    gc.collect()
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


class PeakMemory:
    """How far a `with` block goes beyond what was allocated before it, on a GPU or, on Linux, in the host's memory."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._before = 0
        self.bytes = 0

    def __enter__(self) -> Self:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            trim_heap()
            CLEAR.write_text("5")  # the peak starts anew at what is resident now
            self._before = resident_bytes("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = torch.cuda.max_memory_allocated() if self._cuda else resident_bytes("VmHWM")
        self.bytes = max(0, peak - self._before)


def extra_bytes(device: str, call: Call, inputs: Inputs) -> int:
    """The most that one call takes beyond its inputs and results; it has had its first call."""
    with PeakMemory(device) as memory:
        results = call.timed(call.before(inputs))
    return max(0, memory.bytes - _nbytes(results))


def extra_cpu_bytes(route: str, workload: Workload) -> int | None:
    """The same in a fresh process on the CPU; None where the system does not count or the process fails.

    It is forked from a process that has imported PyTorch and computed nothing.
    """
    if not CLEAR.exists():
        return None
    processes = get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send_extra_bytes, args=(sender, route, workload, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        found: int | None = receiver.recv() if receiver.poll(_MOST_SECONDS) else None
    except EOFError:  # it ended without an answer, perhaps out of memory
        found = None
    finally:
        receiver.close()
        process.kill()
        process.join()
    return found


def _send_extra_bytes(sender: Connection, name: str, workload: Workload, threads: int) -> None:
    torch.set_num_threads(threads)
    _map_large_blocks()
    route = ROUTES[name]
    read = route.build(workload)
    assert not isinstance(read, str)
    call = make_call(workload.pass_name, read)
    inputs = in_layout(make_inputs(workload.shape, workload.dtype, "cpu", seed=0), route.layout)
    call.timed(call.before(inputs))  # compiles, and loads what stays loaded
    sender.send(extra_bytes("cpu", call, inputs))


def _map_large_blocks() -> None:
    """From now on blocks of 128 KiB and more are mappings of their own, which return to the system when freed.

    By itself glibc puts those of up to 32 MiB into its heap after the first is freed, and it depends on their places
    there whether the peak counts what is already free.
    """
    set_option: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, 128 * 1024)


def _nbytes(results: Results) -> int:
    return sum(result.nbytes for result in results)
