"""Compiles every kernel configuration for every architecture, without a GPU, and holds the result to limits.

    python -m stm_fast.kernels.compile_gate

prints a table and exits with 1 on a breach or on a configuration that it did not visit. A kernel that breaks a limit
would fail at launch (shared memory), compute nothing (tensor memory) or crawl (stack, no wgmma); Triton's compiler
says nothing of these.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.configs import Arithmetic, all_configs
from stm_fast.kernels.forward import plan_forward
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.targets import ARCHITECTURES, Target

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may have
TENSOR_MEMORY = 512  # columns, sm_100
FEWEST_REGISTERS = 17  # a kernel whose body was optimised away needs hardly any

# how the tensors lie in memory: contiguous rows, channels first, or a slice without any alignment
Layout = Literal["rows", "channels", "odd"]

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}


class Case(NamedTuple):
    """One kernel, one architecture, one kind of input."""

    kernel: str
    architecture: int
    arithmetic: Arithmetic
    dtype: torch.dtype
    key_dim: int
    value_dim: int
    layout: Layout

    def __str__(self) -> str:
        dtype = f"{_TYPES[self.dtype]} {self.arithmetic}"
        return f"sm_{self.architecture:<4}{self.kernel:9}{dtype:12}{self.key_dim:4}/{self.value_dim:<5}{self.layout:9}"


class Compiled(NamedTuple):
    """What came of one case.

    registers and stack (bytes) of a thread; shared memory (bytes) and tensor memory (columns) of a block; the number of
    wgmma instructions.
    """

    case: Case
    config: Any
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    wgmma: int
    seconds: float

    def __str__(self) -> str:
        memory = f"{self.stack:6} {self.shared / 1024:7.1f} {self.tensor_memory:5} {self.wgmma:6}"
        return f"{self.case}{self.registers:5} {memory} {self.seconds:7.1f}"


HEADER = f"{'arch':7}{'kernel':9}{'dtype':12}{'Ck/Cv':10}{'layout':9} regs  stack  KiB sm  tmem  wgmma seconds"


def cases() -> Iterator[Case]:
    """Every case of the gate."""
    for architecture in ARCHITECTURES:
        for arithmetic, dtype, shapes in (
            ("half", torch.bfloat16, _HALF_SHAPES),
            ("half", torch.float16, ((128, 512, "rows"),)),
            ("ieee", torch.float32, _FLOAT32_SHAPES),
            ("tf32x3", torch.float32, _FLOAT32_SHAPES),
        ):
            for key_dim, value_dim, layout in shapes:
                yield Case("forward", architecture, arithmetic, dtype, key_dim, value_dim, layout)
            if arithmetic != "tf32x3":
                yield Case("combine", architecture, arithmetic, dtype, 128, 512, "rows")


_HALF_SHAPES: tuple[tuple[int, int, Layout], ...] = (
    *((key_dim, value_dim, "rows") for key_dim in (64, 128, 256) for value_dim in (128, 256, 512)),
    (192, 512, "rows"),
    (128, 512, "channels"),
    (127, 511, "odd"),
)
_FLOAT32_SHAPES: tuple[tuple[int, int, Layout], ...] = (
    (128, 512, "rows"),
    (128, 512, "channels"),
    (127, 511, "odd"),
)


def launch_of(case: Case) -> Launch:
    """The launch that the engine would make for such inputs; the tensors have no storage."""
    if case.kernel == "combine":
        part_out = torch.empty(2, 3, 1000, case.value_dim, device="meta")
        return plan_combine(part_out, part_out[..., 0].contiguous(), case.dtype)[2]
    query = _meta_tensor(case, 1000, case.key_dim)
    key, value = _meta_tensor(case, 5000, case.key_dim), _meta_tensor(case, 5000, case.value_dim)
    lengths = torch.empty(2, dtype=torch.int32, device="meta")
    target = Target(case.architecture, processors=100)
    return plan_forward(query, key, value, lengths, 1.0, target, case.arithmetic)[2]


def _meta_tensor(case: Case, rows: int, width: int) -> Tensor:
    if case.layout == "rows":
        return torch.empty(2, rows, width, dtype=case.dtype, device="meta")
    if case.layout == "channels":
        return torch.empty(2, width, rows, dtype=case.dtype, device="meta").mT
    return torch.empty(2, rows + 1, width + 2, 3, dtype=case.dtype, device="meta")[:, 1:, 1:-1, 1]


def compile_case(case: Case) -> Compiled:
    """Compiles one case and reads what the assembler says of it."""
    started = time.perf_counter()
    launch = launch_of(case)
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    target = GPUTarget("cuda", case.architecture, 32)
    compiled = triton.compile(_source(launch), target=target, options=options)
    registers, stack = _resources(compiled.asm["cubin"])
    return Compiled(
        case,
        launch.config,
        registers,
        stack,
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        compiled.asm["ptx"].count("wgmma.mma_async"),
        time.perf_counter() - started,
    )


def _source(launch: Launch) -> ASTSource:
    """The launch as the compiler wants it, specialised on its arguments as the launcher would."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        argument = launch.arguments[parameter.name]
        # the launcher makes constants of absent tensors and of strides of 1
        if parameter.is_constexpr or argument is None or (type(argument) is int and argument == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = argument
            continue
        signature[parameter.name], divisible = _type(argument)
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)


def _type(argument: Tensor | float) -> tuple[str, bool]:
    """Triton's name for the type of an argument, and whether it is known to be a multiple of 16 (bytes, or itself)."""
    if isinstance(argument, Tensor):
        return f"*{_TYPES[argument.dtype]}", argument.storage_offset() * argument.element_size() % 16 == 0
    if isinstance(argument, int):
        return "i32" if argument < 2**31 else "i64", argument % 16 == 0
    return "fp32", False


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    cuobjdump = os.path.join(os.path.dirname(nvidia.__file__), "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump, "--dump-resource-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    if found is None:
        raise RuntimeError(f"{cuobjdump}: found no REG and STACK in {listing!r}")
    return int(found[1]), int(found[2])


def breaches(compiled: Compiled) -> list[str]:
    """The limits that one compiled case breaks."""
    case, found = compiled.case, []
    if compiled.stack:
        found.append(f"{compiled.stack} bytes of stack, expected 0")
    if compiled.shared > SHARED_MEMORY[case.architecture] * 1024:
        found.append(f"{compiled.shared} bytes of shared memory, the limit is {SHARED_MEMORY[case.architecture]} KiB")
    if compiled.tensor_memory > TENSOR_MEMORY:
        found.append(f"{compiled.tensor_memory} columns of tensor memory, the limit is {TENSOR_MEMORY}")
    if compiled.registers < FEWEST_REGISTERS:
        found.append(f"{compiled.registers} registers: the kernel is empty")
    if case.architecture == 90 and case.kernel == "forward" and case.arithmetic == "half" and not compiled.wgmma:
        found.append("no wgmma")
    return [f"{case}: {breach}" for breach in found]


def unvisited(results: Sequence[Compiled]) -> list[str]:
    """The configurations that could be chosen at run time and that no case compiled."""
    visited = {(result.case.architecture, result.case.arithmetic, result.config) for result in results}
    missing = [choice for choice in all_configs() if choice not in visited]
    return [f"not visited: sm_{architecture} {arithmetic} {config}" for architecture, arithmetic, config in missing]


def compile_all(chosen: Sequence[Case], processes: int = 2) -> Iterator[Compiled]:
    """Compiles the cases, as they come."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(compile_case, chosen)


def main() -> int:
    print(f"Triton {triton.__version__}\n{HEADER}")
    results, problems = [], []
    for result in compile_all(list(cases())):
        results.append(result)
        broken = breaches(result)
        problems += broken
        print(f"{result}{'  BREACH' * bool(broken)}", flush=True)
    problems += unvisited(results)
    print("\n".join(problems) or f"{len(results)} kernels, every configuration visited, no limit broken")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
