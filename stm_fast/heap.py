"""Where glibc puts large blocks, and when it returns them to the system; other allocators are left alone."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**17  # bytes: the initial threshold
_LARGEST = 2**25  # the largest threshold that glibc accepts
_KEPT = 2**27  # free bytes at the end of the heap


def map_large_blocks() -> None:
    """From now on blocks of 128 KiB and more that find no room in the heap are separate mappings.

    When freed, those return to the system. By itself glibc puts blocks of up to 32 MiB into its heap after the first of
    their size is freed.
    """
    _set(_M_MMAP_THRESHOLD, _LARGE)


@contextmanager
def weights_mapped() -> Iterator[None]:
    """Maps blocks of 128 KiB and more separately within a `with` block in which a network is loaded and prepared.

    Every step of that frees the weights of the step before. In the heap they would leave holes of many sizes, over
    which the tensors of the frames then spread. After the block, those come from the heap, and find their pages again.
    """
    chosen = _chosen_by_user()
    if not chosen:
        map_large_blocks()
    try:
        yield
    finally:
        if not chosen:
            _set(_M_MMAP_THRESHOLD, _LARGEST)
            _set(_M_TRIM_THRESHOLD, _KEPT)


def trim_heap() -> None:
    """Returns to the system what the allocator keeps for later."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _set(option: int, value: int) -> None:
    if _is_glibc():
        ctypes.CDLL(None).mallopt(option, value)


def _chosen_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    by_name = "MALLOC_MMAP_THRESHOLD_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ
    return by_name or "mmap_threshold" in tunables or "trim_threshold" in tunables


def _is_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")
