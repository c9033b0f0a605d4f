"""Asks Triton, without a GPU, to specialise the warps of the forward loop on sm_90 by itself, and says why it cannot.

    python -m stm_fast.kernels.compile_gate_specialised

A producer warp group that loads, and two consumers of 64 queries each, would let one's softmax run beside the other's
products. `tl.range(warp_specialize=True)` is to make them from a loop over tiles that tensor descriptors load, which is
all that `_specialised_kernel` is. No Triton yet makes a kernel of it that is right and spills nothing, so forward.py
asks for none; the Hopper kernel has its warp groups by hand. README.md says what each version does.

A test holds the answer to "cannot": the Triton that can will be noticed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stm_fast.kernels.compile_gate import resources
from stm_fast.kernels.targets import SHARED_MEMORY

BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_V = 128, 64, 128, 256  # the portable tile of sm_90
NUM_WARPS = 4  # of one group; with more the request is ignored, and nothing says so
ARCHITECTURE = 90


class SpecialisedCase(NamedTuple):
    """Queries of a tile, and whether rows that do not count, which may hold NaN, are cleared, as they have to be."""

    block_m: int
    cleared: bool

    def __str__(self) -> str:
        return f"{self.block_m:3} queries, {'spare rows cleared' if self.cleared else 'no spare rows'}"


NEEDED = SpecialisedCase(BLOCK_M, cleared=True)
CASES = (
    NEEDED,
    SpecialisedCase(BLOCK_M, cleared=False),
    SpecialisedCase(BLOCK_M // 2, cleared=True),
    SpecialisedCase(BLOCK_M // 2, cleared=False),
)


def specialised_reasons(case: SpecialisedCase = NEEDED) -> list[str]:
    """Why this Triton cannot give the forward loop specialised warps within the limits; empty where it can."""
    target, options = GPUTarget("cuda", ARCHITECTURE, 32), {"num_warps": NUM_WARPS, "num_stages": 2}
    try:
        with _quiet():
            compiled = triton.compile(_source(case), target=target, options=options)
    except Exception as error:  # whatever a compiler raises
        return [f"it does not compile: {type(error).__name__}: {error}"]
    reasons = []
    if "setmaxnreg" not in compiled.asm["ptx"]:
        reasons.append("the request was ignored")
    _, stack = resources(compiled.asm["cubin"])
    if stack:
        reasons.append(f"{stack} bytes of stack, expected 0")
    if compiled.metadata.shared > SHARED_MEMORY[ARCHITECTURE] * 1024:
        reasons.append(f"{compiled.metadata.shared} bytes of shared memory")
    return reasons


def _source(case: SpecialisedCase) -> ASTSource:
    constants = {"BLOCK_M": case.block_m, "BLOCK_N": BLOCK_N, "BLOCK_V": BLOCK_V, "CLEARED": case.cleared}
    types = {
        "query": f"tensordesc<bf16[{case.block_m},{BLOCK_K}]>",
        "key": f"tensordesc<bf16[{BLOCK_N},{BLOCK_K}]>",
        "value": f"tensordesc<bf16[{BLOCK_N},{BLOCK_V}]>",
        "out": "*bf16",
        "N": "i32",
        "scale": "fp32",
    }
    signature = types | dict.fromkeys(constants, "constexpr")
    return ASTSource(_specialised_kernel, signature, constexprs=constants, attrs={(3,): [["tt.divisibility", 16]]})


@triton.jit
def _specialised_kernel(
    query,
    key,
    value,
    out,
    N,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CLEARED: tl.constexpr,
):
    """The loop of forward.py, one chunk of keys and one accumulator, compiled and never run."""
    first_query = tl.program_id(0) * BLOCK_M
    query_tile = query.load([first_query, 0])
    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for first in tl.range(0, N, BLOCK_N, warp_specialize=True):
        valid = first + tl.arange(0, BLOCK_N) < N
        raw = tl.dot(query_tile, key.load([first, 0]).T)
        score = tl.where(valid[None, :], raw * scale, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp(score - new_largest[:, None])
        rescale = tl.exp(largest - new_largest)
        total = total * rescale + tl.sum(weight, 1)
        value_tile = value.load([first, 0])
        if CLEARED:
            value_tile = tl.where(valid[:, None], value_tile, 0.0)
        accumulator = tl.dot(weight.to(value_tile.dtype), value_tile, accumulator * rescale[:, None])
        largest = new_largest
    m, v = first_query + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_V)
    tl.store(out + m[:, None] * BLOCK_V + v[None, :], (accumulator / total[:, None]).to(out.dtype.element_ty))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the listing of the whole program that a failing pass prints to the process's stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def main() -> int:
    print(f"Triton {triton.__version__}, sm_{ARCHITECTURE}, automatic warp specialisation of the forward loop")
    for case in CASES:
        print(f"{case}: {'; '.join(specialised_reasons(case)) or 'within the limits'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
