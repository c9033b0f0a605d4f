"""Compiles every kernel configuration for every architecture, without a GPU, and holds the result to limits.

    python -m stm_fast.kernels.compile_gate

prints a table and exits with 1 on a breach or on a configuration that it did not visit. A kernel that breaks a limit
would fail at launch (shared memory), compute nothing (tensor memory) or crawl (stack, no wgmma); Triton's compiler
says nothing of these.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.configs import all_configs
from stm_fast.kernels.delta import plan_delta
from stm_fast.kernels.forward import plan_forward
from stm_fast.kernels.grad_key import plan_grad_key
from stm_fast.kernels.grad_query import new_query_sums, plan_grad_query
from stm_fast.kernels.grad_scores import plan_grad_scores
from stm_fast.kernels.grad_value import plan_grad_value
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.layout import plan_rows
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.row_totals import plan_row_totals
from stm_fast.kernels.sass import disassemble, in_loops, main_loop, narrow_loads, opcodes, run_tool, waits
from stm_fast.kernels.similarity import half_norms
from stm_fast.kernels.targets import ARCHITECTURES, SHARED_MEMORY, Target
from stm_fast.kernels.tiles import Arithmetic
from stm_fast.kernels.topk_select import plan_candidates, plan_maxima
from stm_fast.kernels.usage import plan_usage
from stm_fast.kernels.weighted_sum import lists_of_queries, plan_weighted_sum

BACKWARD_STACK = 192  # bytes a thread of the other kernels may spill; the forward kernels spill none
TENSOR_MEMORY = 512  # columns, sm_100
AMD_ARCHITECTURES = ("gfx90a", "gfx942")
FEWEST_REGISTERS = 17  # a kernel whose body was optimised away needs hardly any

# how the tensors lie in memory: contiguous rows, channels first, or a slice without any alignment
Layout = Literal["rows", "channels", "odd"]

# dot; l2 alone; l2 with shrinkage, selection and query_norm
Scores = Literal["dot", "l2", "l2 all"]

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
_TYPES |= {torch.int8: "i8", torch.float8_e4m3fn: "fp8e4nv"}


class Case(NamedTuple):
    """One kernel, one architecture, one kind of input."""

    kernel: str
    architecture: int
    arithmetic: Arithmetic
    dtype: torch.dtype
    key_dim: int
    value_dim: int
    layout: Layout
    scores: Scores = "dot"

    def __str__(self) -> str:
        kind = f"{_TYPES[self.dtype]} {self.arithmetic:7}{self.scores:7}{self.layout:9}"
        return f"sm_{self.architecture:<4}{self.kernel:12}{kind}{self.key_dim:4}/{self.value_dim:<5}"


class Compiled(NamedTuple):
    """What came of one case.

    registers and stack (bytes) of a thread; shared memory (bytes) and tensor memory (columns) of a block; the number of
    wgmma instructions. Of the main loop the number of instructions and of waits; of all loops that of loads of a number
    of two bytes by itself.
    """

    case: Case
    config: Any
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    wgmma: int
    seconds: float
    loop: int = 0
    waits: int = 0
    narrow: int = 0

    def __str__(self) -> str:
        memory = f"{self.stack:6} {self.shared / 1024:7.1f} {self.tensor_memory:5} {self.wgmma:6}"
        memory += f" {self.loop:5} {self.waits:5} {self.narrow:6}"
        return f"{self.case}{self.registers:5} {memory} {self.seconds:7.1f}"


HEADER = (
    f"{'arch':7}{'kernel':12}{'dtype':12}{'scores':7}{'layout':9}  Ck/Cv   regs  stack  KiB sm  tmem  wgmma"
    "  loop waits narrow seconds"
)

Shape = tuple[int, int, Layout, Scores]  # Ck, Cv

_FORWARD_HALF: tuple[Shape, ...] = (
    (128, 512, "rows", "dot"),
    (64, 512, "rows", "dot"),
    (64, 256, "rows", "dot"),
    (64, 128, "rows", "dot"),
    (128, 128, "rows", "dot"),
    (128, 256, "rows", "dot"),
    (80, 128, "rows", "dot"),
    (32, 32, "rows", "dot"),
    (176, 192, "rows", "dot"),
    (192, 512, "rows", "dot"),
    (256, 512, "rows", "dot"),
    (240, 640, "rows", "dot"),
    (128, 512, "channels", "dot"),
    (127, 511, "odd", "dot"),
    (64, 512, "rows", "l2 all"),
    (128, 512, "rows", "l2 all"),
    (128, 128, "rows", "l2 all"),
    (80, 128, "rows", "l2 all"),
    (192, 512, "rows", "l2 all"),
    (256, 256, "rows", "l2 all"),
    (127, 511, "odd", "l2 all"),
    (255, 511, "odd", "l2 all"),
)
_FORWARD_FLOAT32: tuple[Shape, ...] = ((128, 512, "rows", "dot"), (127, 511, "odd", "l2 all"))
_BACKWARD_HALF: tuple[Shape, ...] = (
    (128, 512, "rows", "dot"),
    (64, 512, "rows", "l2 all"),
    (127, 511, "odd", "l2 all"),
)
_BACKWARD_FLOAT32: Shape = (127, 511, "odd", "l2 all")
_TOP_K = 30


def cases() -> Iterator[Case]:
    """Every case of the gate."""
    gradients = ("grad_scores", "grad_value", "grad_key", "grad_query")
    top_k = ("maxima", "candidates")
    for architecture in ARCHITECTURES:
        for shape in _FORWARD_HALF:
            yield Case("forward", architecture, "half", torch.bfloat16, *shape)
        yield Case("forward", architecture, "half", torch.float16, *_FORWARD_HALF[0])
        for arithmetic, shape in product(("ieee", "tf32x3"), _FORWARD_FLOAT32):
            yield Case("forward", architecture, arithmetic, torch.float32, *shape)
        yield Case("rows", architecture, "half", torch.bfloat16, 128, 512, "channels")
        yield Case("rows", architecture, "ieee", torch.float32, 128, 512, "channels")
        for kernel in ("combine", "delta", "weighted"):
            yield Case(kernel, architecture, "half", torch.bfloat16, *_BACKWARD_HALF[0])
            yield Case(kernel, architecture, "ieee", torch.float32, *_BACKWARD_HALF[0])
        for kernel, shape in product((*gradients, *top_k), _BACKWARD_HALF):
            yield Case(kernel, architecture, "half", torch.bfloat16, *shape)
        yield Case("grad_value", architecture, "half", torch.bfloat16, 128, 128, "rows")
        for kernel in ("usage", *top_k):
            yield Case(kernel, architecture, "half", torch.bfloat16, 256, 512, "rows")
        yield Case("usage", architecture, "half", torch.bfloat16, *_BACKWARD_HALF[-1])
        for kernel in (*gradients, *top_k, "row_totals"):
            yield Case(kernel, architecture, "ieee", torch.float32, *_BACKWARD_FLOAT32)
        for kernel in ("grad_key", *top_k):
            yield Case(kernel, architecture, "tf32x3", torch.float32, *_BACKWARD_FLOAT32)


def launch_of(case: Case) -> Launch:
    """The launch that the engine would make for such inputs; the tensors have no storage."""
    problem = _problem(case)
    batch, queries = problem.value.shape[0], problem.query.shape[1]
    out = torch.empty(batch, queries, case.value_dim, dtype=case.dtype, device="meta")
    lse = torch.empty(batch, queries, device="meta")
    totals = None if case.arithmetic == "half" else lse
    if case.kernel == "combine":
        parts = torch.empty(batch, 3, *out.shape[1:], device="meta")
        return plan_combine(parts, lse[:, None], case.dtype)[-1]
    if case.kernel == "delta":
        return plan_delta(out, lse, out)[-1]
    if case.kernel == "weighted":
        rows = torch.empty(batch, queries, _TOP_K, dtype=torch.int64, device="meta")
        return plan_weighted_sum(lists_of_queries(rows), lse, problem.value, case.dtype)[-1]
    plans = {
        "rows": lambda: plan_rows(problem.value),
        "forward": lambda: plan_forward(problem),
        "row_totals": lambda: plan_row_totals(problem, lse),
        "usage": lambda: plan_usage(problem, lse, totals),
        "maxima": lambda: plan_maxima(problem, _TOP_K),
        "candidates": lambda: plan_candidates(problem, lse, _TOP_K, 4 * _TOP_K),
        "grad_scores": lambda: plan_grad_scores(problem, out, lse, totals, lse, 0, 2048),
    }
    if case.kernel in plans:
        return plans[case.kernel]()[-1]
    block = plans["grad_scores"]()[0]
    gradients = {
        "grad_value": lambda: plan_grad_value(problem, block, out, out),
        "grad_key": lambda: plan_grad_key(problem, block, out),
        "grad_query": lambda: plan_grad_query(problem, block, new_query_sums(problem, 2048)),
    }
    return gradients[case.kernel]()


def _problem(case: Case) -> Problem:
    everything = case.scores == "l2 all"
    query = _meta_tensor(case, 1000, case.key_dim)
    return Problem(
        query=query,
        key=_meta_tensor(case, 5000, case.key_dim),
        value=_meta_tensor(case, 5000, case.value_dim),
        shrinkage=torch.empty(2, 5000, device="meta") if everything else None,
        selection=_meta_tensor(case, 1000, case.key_dim, torch.float32) if everything else None,
        lengths=torch.empty(2, dtype=torch.int32, device="meta"),
        scale=1.0,
        similarity=int(case.scores != "dot"),
        norms=half_norms(query, None) if everything else None,
        target=Target(case.architecture, processors=100),
        arithmetic=case.arithmetic,
    )


def _meta_tensor(case: Case, rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    dtype = dtype or case.dtype
    if case.layout == "rows":
        return torch.empty(2, rows, width, dtype=dtype, device="meta")
    if case.layout == "channels":
        return torch.empty(2, width, rows, dtype=dtype, device="meta").mT
    return torch.empty(2, rows + 1, width + 2, 3, dtype=dtype, device="meta")[:, 1:, 1:-1, 1]


def compile_case(case: Case) -> Compiled:
    """Compiles one case and reads what the assembler says of it."""
    started = time.perf_counter()
    launch = launch_of(case)
    target = GPUTarget("cuda", case.architecture, 32)
    compiled = triton.compile(source(launch), target=target, options=launch.options)
    registers, stack = resources(compiled.asm["cubin"])
    listing = disassemble(compiled.asm["cubin"])
    loop = main_loop(listing)
    return Compiled(
        case,
        launch.config,
        registers,
        stack,
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        compiled.asm["ptx"].count("wgmma.mma_async"),
        time.perf_counter() - started,
        opcodes(loop).total(),
        waits(loop),
        narrow_loads(in_loops(listing)),
    )


def source(launch: Launch) -> ASTSource:
    """The launch as the compiler wants it, specialised on its arguments as the launcher would."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        argument = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(index,)] = "constexpr", argument
        else:
            signature[parameter.name] = _type(argument, (index,), constants, attributes)
    return ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)


def _type(
    argument: Any, path: tuple[int, ...], constants: dict[tuple[int, ...], Any], attributes: dict[tuple[int, ...], Any]
) -> Any:
    """Triton's name for the type of the argument at a path; notes what is constant, and what is a multiple of 16."""
    if isinstance(argument, tuple):
        types = [_type(member, (*path, index), constants, attributes) for index, member in enumerate(argument)]
        return type(argument)(*types) if hasattr(argument, "_fields") else tuple(types)
    # the launcher makes constants of absent tensors and of strides of 1
    if argument is None or (type(argument) is int and argument == 1):
        constants[path] = argument
        return "constexpr"
    if isinstance(argument, float):
        return "fp32"
    is_tensor = isinstance(argument, Tensor)
    if (argument.storage_offset() * argument.element_size() if is_tensor else argument) % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    if is_tensor:
        return f"*{_TYPES[argument.dtype]}"
    return "i32" if argument < 2**31 else "i64"


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    listing = run_tool("cuobjdump", "--dump-resource-usage", cubin=cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    if found is None:
        raise RuntimeError(f"cuobjdump: found no REG and STACK in {listing!r}")
    return int(found[1]), int(found[2])


def amd_rows() -> Iterator[str]:
    """What AMD's compiler makes of the forward kernel with the tiles of sm_80; no limit holds there."""
    launch = launch_of(Case("forward", 80, "half", torch.bfloat16, *_FORWARD_HALF[0]))
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    for architecture in AMD_ARCHITECTURES:
        target = GPUTarget("hip", architecture, 64)
        compiled = triton.compile(source(launch), target=target, options=options)
        assembly = compiled.asm["amdgcn"]
        counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", assembly))
        yield (
            f"{architecture}: {counts['vgpr_count']} registers, {counts['vgpr_spill_count']} of them spilled, "
            f"{counts['private_segment_fixed_size']} bytes of scratch, "
            f"{compiled.metadata.shared / 1024:.1f} KiB shared, {assembly.count('v_mfma')} matrix instructions"
        )


def breaches(compiled: Compiled) -> list[str]:
    """The limits that one compiled case breaks."""
    case, found = compiled.case, []
    stack = 0 if case.kernel.startswith(("forward", "combine")) else BACKWARD_STACK
    if compiled.stack > stack:
        found.append(f"{compiled.stack} bytes of stack, the limit is {stack}")
    if compiled.shared > SHARED_MEMORY[case.architecture] * 1024:
        found.append(f"{compiled.shared} bytes of shared memory, the limit is {SHARED_MEMORY[case.architecture]} KiB")
    if compiled.tensor_memory > TENSOR_MEMORY:
        found.append(f"{compiled.tensor_memory} columns of tensor memory, the limit is {TENSOR_MEMORY}")
    if compiled.registers < FEWEST_REGISTERS:
        found.append(f"{compiled.registers} registers: the kernel is empty")
    if (
        case.architecture == 90
        and case.kernel.startswith("forward")
        and case.arithmetic == "half"
        and not compiled.wgmma
    ):
        found.append("no wgmma")
    if case.layout == "rows" and compiled.narrow:
        found.append(f"{compiled.narrow} loads of two bytes in a loop")
    return [f"{case}: {breach}" for breach in found]


def unvisited(choices: Iterable[tuple[Case, Any]]) -> list[str]:
    """The configurations that could be chosen at run time and that no case, given with its own, compiles."""
    visited = {(case.architecture, case.arithmetic, config) for case, config in choices}
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
    problems += unvisited((result.case, result.config) for result in results)
    print("AMD, as information:", *amd_rows(), sep="\n")
    print("\n".join(problems) or f"{len(results)} kernels, every configuration visited, no limit broken")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
