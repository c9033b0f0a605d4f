"""Compiles the Hopper kernel without a GPU and holds the machine code to limits.

    python -m stm_fast.kernels.compile_gate_hopper

prints a table and exits with 1 on a breach. Besides the limits of compile_gate.py: ptxas must not have put the wgmma
one after the other, which it does, with a remark only, where it cannot see that nobody touches their accumulators.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from stm_fast.kernels.configs_hopper import ALL_HOPPER_CONFIGS, VALUE_DIM, HopperConfig
from stm_fast.kernels.forward_hopper import GluonLaunch, plan_forward_hopper
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.targets import Target

SHARED_MEMORY = 227 * 1024
REGISTERS = 65536
PARTITIONS = 3  # of four warps each, the producer's filled up

_TOOLS = Path(nvidia.__file__).parent / "bin"
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}


class HopperCase(NamedTuple):
    """A dtype, a tile, into how many parts the memory is split, whether there are lengths, and M and N.

    Parts are float32; Triton compiles numbers that are 1 into the kernel.
    """

    dtype: torch.dtype
    config: HopperConfig
    splits: int
    lengths: bool = True
    queries: int = 1000
    rows: int = 5000

    def __str__(self) -> str:
        kind = f"{'parts' if self.splits > 1 else 'whole'} {'lengths' if self.lengths else '':7}"
        return f"{_TYPES[self.dtype]}  keys {self.config.block_k:3}  {kind} {self.queries:4} {self.rows:4}"


class HopperCompiled(NamedTuple):
    """What came of one case: bytes of stack of a thread, bytes of shared memory, and counts of instructions."""

    case: HopperCase
    stack: int
    shared: int
    wgmma: int
    local_memory: int  # LDL and STL
    copies: int
    serialised: bool

    def __str__(self) -> str:
        counts = f"{self.stack:6} {self.shared / 1024:7.1f} {self.wgmma:6} {self.local_memory:6} {self.copies:7}"
        return f"{self.case}{counts}  {'yes' if self.serialised else 'no'}"


HEADER = f"{'':29}   M    N  stack  KiB sm  HGMMA  local  copies  serialised"

CASES = (
    HopperCase(torch.bfloat16, ALL_HOPPER_CONFIGS[1], 1),
    HopperCase(torch.bfloat16, ALL_HOPPER_CONFIGS[0], 5, lengths=False),
    HopperCase(torch.float16, ALL_HOPPER_CONFIGS[1], 5),
    HopperCase(torch.float16, ALL_HOPPER_CONFIGS[1], 1, lengths=False, queries=1, rows=1),
)


def compile_hopper(case: HopperCase) -> HopperCompiled:
    launch = _launch_of(case)
    compiled = triton.compile(_source(launch), target=GPUTarget("cuda", 90, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        usage = _output("cuobjdump", "--dump-resource-usage", str(cubin))
        code = _output("cuobjdump", "--dump-sass", str(cubin))
        remarks = _output("ptxas", "-v", "--gpu-name=sm_90a", str(ptx), "-o", str(Path(folder, "again.cubin")))
    stack = re.search(r"STACK:(\d+)", usage)
    if stack is None:
        raise RuntimeError(f"cuobjdump: found no STACK in {usage!r}")
    return HopperCompiled(
        case,
        int(stack[1]),
        compiled.metadata.shared,
        code.count("HGMMA"),
        len(re.findall(r"\b(?:LDL|STL)\b", code)),
        code.count("UTMALDG"),
        "serialized" in remarks,
    )


def _launch_of(case: HopperCase) -> GluonLaunch:
    """The launch that the engine would make; the tensors have no storage."""
    width_of_keys = case.config.block_k
    query, key, value = (
        torch.empty(2, rows, width, dtype=case.dtype, device="meta")
        for rows, width in ((case.queries, width_of_keys), (case.rows, width_of_keys), (case.rows, VALUE_DIM))
    )
    lengths = torch.empty(2, dtype=torch.int32, device="meta") if case.lengths else None
    options = {"scale": 1.0, "similarity": 0, "norms": None, "target": Target(90, 132), "arithmetic": "half"}
    problem = Problem(query, key, value, None, None, lengths, **options)
    return plan_forward_hopper(problem, splits=case.splits)[2]


def _source(launch: GluonLaunch) -> GluonASTSource:
    """The launch as the compiler wants it."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        argument = launch.arguments[parameter.name]
        # the launcher makes constants of absent tensors and of numbers that are 1
        if parameter.is_constexpr or argument is None or (type(argument) is int and argument == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", argument
            continue
        signature[parameter.name] = _type(argument)
        if isinstance(argument, Tensor) or (isinstance(argument, int) and argument % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return GluonASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)


def _type(argument: Tensor | TensorDescriptor | float) -> str:
    """Triton's name for the type of an argument."""
    if isinstance(argument, Tensor):
        return f"*{_TYPES[argument.dtype]}"
    if isinstance(argument, TensorDescriptor):
        block = ",".join(map(str, argument.block_shape))
        return f"tensordesc<{_TYPES[argument.base.dtype]}[{block}],{argument.layout!r}>"
    return "i32" if isinstance(argument, int) else "fp32"


def _output(tool: str, *arguments: str) -> str:
    """All that a tool that Triton brings along prints."""
    done = subprocess.run([str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def hopper_breaches(compiled: HopperCompiled) -> list[str]:
    """The limits that one compiled case breaks."""
    found = []
    if compiled.stack or compiled.local_memory:
        found.append(f"{compiled.stack} bytes of stack, {compiled.local_memory} uses of local memory, expected none")
    if compiled.shared > SHARED_MEMORY:
        found.append(f"{compiled.shared} bytes of shared memory, the limit is {SHARED_MEMORY}")
    if compiled.case.config.maxnreg * PARTITIONS * 128 > REGISTERS:
        found.append(f"{compiled.case.config.maxnreg} registers a thread are more than there are")
    # one product of all queries and keys of a step takes a wgmma for every 16 channels, one with values 4
    config = compiled.case.config
    least = config.block_k // 16 + 2 * (config.block_n // 16)
    if compiled.wgmma < least:
        found.append(f"{compiled.wgmma} HGMMA, expected at least {least}")
    if not compiled.copies:
        found.append("no copy by TMA")
    if compiled.serialised:
        found.append("the wgmma are serialised")
    return [f"{compiled.case}: {breach}" for breach in found]


def main() -> int:
    print(f"Triton {triton.__version__}, sm_90\n{HEADER}")
    problems = []
    for case in CASES:
        compiled = compile_hopper(case)
        problems += hopper_breaches(compiled)
        print(compiled, flush=True)
    print("\n".join(problems) or f"{len(CASES)} kernels, no limit broken")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
