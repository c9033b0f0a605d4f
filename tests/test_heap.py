"""Where large blocks are; each test in its own process, because the allocator's options stay set."""

import ctypes
import os
import subprocess
import sys

import pytest

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")
pytestmark = pytest.mark.skipif(not GLIBC, reason="another allocator")

# a large mapping that is freed raises glibc's own threshold: without options, later blocks are in the heap
START = """
import os, re
from pathlib import Path
import torch
from stm_fast.heap import trim_heap, weights_mapped

def in_heap(tensor):
    heap = re.search(r"(\\w+)-(\\w+) .*\\[heap\\]", Path("/proc/self/maps").read_text())
    return int(heap[1], 16) <= tensor.data_ptr() < int(heap[2], 16)

torch.ones(2**22)
"""


def run(code, **options):
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    command = [sys.executable, "-c", START + code]
    subprocess.run(command, check=True, env=environment | options)


def test_only_the_weights_are_mapped():
    run("""
assert in_heap(torch.ones(2**20))
with weights_mapped():
    weights = torch.ones(2**21)  # larger than what is free in the heap
    assert not in_heap(weights)
assert in_heap(torch.ones(2**21))
assert weights.sum() == 2**21
""")


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("MALLOC_MMAP_THRESHOLD_", str(2**25), True),
        ("GLIBC_TUNABLES", f"glibc.malloc.mmap_threshold={2**25}", True),
        ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0", False),
    ],
)
def test_options_of_the_user_stay(name, value, kept):
    run(f"""
with weights_mapped():
    assert in_heap(torch.ones(2**20)) == {kept}
""", **{name: value})  # fmt: skip


def test_a_trimmed_heap_returns_its_pages():
    run("""
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

with weights_mapped():
    pass
blocks = [torch.ones(2**20) for _ in range(20)]
kept = torch.ones(100)  # at the end of the heap, which so cannot shrink
before = resident()
del blocks
assert before - resident() < 4e6
trim_heap()
assert before - resident() > 60e6
""")
