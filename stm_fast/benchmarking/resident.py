"""The peak of a process's resident memory, as Linux tells it."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_M_MMAP_THRESHOLD = -3  # of malloc.h


def resident_bytes(name: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def give_back_free_memory() -> None:
    """Returns to the system what the allocator keeps for later."""
    gc.collect()
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def map_large_blocks() -> None:
    """From now on blocks of 128 KiB and more are mappings of their own, which go back to the system when freed.

    By itself glibc puts those of up to 32 MiB into its heap after the first is freed, and where they come to lie there
    decides whether the peak counts what is free already.
    """
    set_option: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, 128 * 1024)


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
            give_back_free_memory()
            CLEAR.write_text("5")  # the peak starts anew at what is resident now
            self._before = resident_bytes("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = torch.cuda.max_memory_allocated() if self._cuda else resident_bytes("VmHWM")
        self.bytes = max(0, peak - self._before)
