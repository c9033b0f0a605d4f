"""A kernel compiled for an architecture without a GPU, and what the assembler made of it."""

import os
import re
import time
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gate.sass import disassemble, in_loops, main_loop, matching, narrow_loads, opcodes, run_tool, waits
from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.delta import plan_delta
from stm_fast.kernels.experimental.forward_hopper import plan_forward_hopper
from stm_fast.kernels.forward import plan_forward
from stm_fast.kernels.forward_quantized import QuantizedOperands, plan_forward_quantized
from stm_fast.kernels.grad_key import plan_grad_key
from stm_fast.kernels.grad_query import new_query_sums, plan_grad_query
from stm_fast.kernels.grad_scores import plan_grad_scores
from stm_fast.kernels.grad_value import plan_grad_value
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.layout import plan_rows
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.row_totals import plan_row_totals
from stm_fast.kernels.similarity import half_norms
from stm_fast.kernels.targets import Target
from stm_fast.kernels.tiles import Arithmetic
from stm_fast.kernels.topk_select import plan_candidates, plan_maxima
from stm_fast.kernels.usage import plan_usage
from stm_fast.kernels.weighted_sum import lists_of_queries, plan_weighted_sum

# how the tensors lie in memory: contiguous rows, channels first, or a slice without any alignment
Layout = Literal["rows", "channels", "odd"]

# dot; l2 alone; l2 with shrinkage, selection and query_norm
Scores = Literal["dot", "l2", "l2 all"]

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
_TYPES |= {torch.int8: "i8", torch.float8_e4m3fn: "fp8e4nv"}
_PROCESSORS = 132
_SLOTS = 5  # of a quantized memory
_TOP_K = 30


class Case(NamedTuple):
    """One kernel, one architecture, one kind of input.

    dtype:   of the memory; the query of a quantized one is bfloat16.
    rows:    of the memory, or of each slot of a quantized one.
    splits:  parts that the memory is read in; chosen as at run time where None.
    lengths: whether the objects have lengths.
    """

    kernel: str
    architecture: int
    arithmetic: Arithmetic
    dtype: torch.dtype
    key_dim: int
    value_dim: int
    layout: Layout = "rows"
    scores: Scores = "dot"
    queries: int = 1000
    rows: int = 5000
    splits: int | None = None
    lengths: bool = True

    def __str__(self) -> str:
        kind = f"{_TYPES[self.dtype]:8}{self.arithmetic:7}{self.scores:7}{self.layout:9}"
        parts = f"{self.splits or '':2}{' ' if self.lengths else '-'}"
        size = f"{self.key_dim:4}/{self.value_dim:<4}{self.queries:5}x{self.rows:<5}{parts}"
        return f"sm_{self.architecture:<4}{self.kernel:12}{kind}{size}"


class Compiled(NamedTuple):
    """The machine code of one case.

    Of a thread: registers and stack (bytes). Of a block: shared memory (bytes) and tensor memory (columns). Counts of
    instructions: wgmma, accesses of local memory, TMA copies; all those and the waits of the main loop; loads of two
    bytes in any loop. Whether the assembler serialized the wgmma, which it reports in a remark alone and which is
    looked for in the Hopper kernel only.
    """

    case: Case
    config: Any
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    wgmma: int
    seconds: float
    local_memory: int = 0
    copies: int = 0
    loop: int = 0
    waits: int = 0
    narrow: int = 0
    serialized: bool = False

    def __str__(self) -> str:
        memory = f"{self.registers:5} {self.stack:6} {self.shared / 1024:7.1f} {self.tensor_memory:5}"
        counts = f"{self.wgmma:6} {self.copies:4} {self.loop:5} {self.waits:5} {self.narrow:6}"
        return f"{self.case}{memory} {counts} {self.seconds:7.1f}"


HEADER = (
    f"{'arch':7}{'kernel':12}{'dtype':15}{'scores':7}{'layout':9}  Ck/Cv    M x N    parts regs  stack  KiB sm  tmem"
    "  wgmma  tma  loop waits narrow seconds"
)


def compile_case(case: Case) -> Compiled:
    """Compiles one case and reads what the assembler says of it."""
    started = time.perf_counter()
    launch = launch_of(case)
    target = GPUTarget("cuda", case.architecture, 32)
    is_hopper = case.kernel == "hopper"
    compiled = triton.compile(_gluon_source(launch) if is_hopper else source(launch), target, launch.options)
    cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
    registers, stack = resources(cubin)
    listing = disassemble(cubin)
    loop = main_loop(listing)
    return Compiled(
        case,
        launch.config,
        registers,
        stack,
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        matching(listing, r"\w*GMMA\b"),
        time.perf_counter() - started,
        matching(listing, r"(LDL|STL)\b"),
        matching(listing, "UTMALDG"),
        opcodes(loop).total(),
        waits(loop),
        narrow_loads(in_loops(listing)),
        is_hopper and "serialized" in run_tool("ptxas", "-v", "--gpu-name=sm_90a", "-o", os.devnull, file=ptx.encode()),
    )


def launch_of(case: Case) -> Any:
    """The launch that the engine would make for such inputs; the tensors have no storage."""
    if case.kernel == "quantized":
        return _quantized_launch(case)
    problem = _problem(case)
    if case.kernel == "hopper":
        return plan_forward_hopper(problem, case.splits)[-1]
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
    query = _meta_tensor(case, case.queries, case.key_dim)
    return Problem(
        query,
        _meta_tensor(case, case.rows, case.key_dim),
        _meta_tensor(case, case.rows, case.value_dim),
        torch.empty(2, case.rows, device="meta") if everything else None,
        _meta_tensor(case, case.queries, case.key_dim, torch.float32) if everything else None,
        torch.empty(2, dtype=torch.int32, device="meta") if case.lengths else None,
        1.0,
        int(case.scores != "dot"),
        half_norms(query, None) if everything else None,
        Target(case.architecture, _PROCESSORS),
        case.arithmetic,
    )


def _meta_tensor(case: Case, rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    dtype = dtype or case.dtype
    if case.layout == "rows":
        return torch.empty(2, rows, width, dtype=dtype, device="meta")
    if case.layout == "channels":
        return torch.empty(2, width, rows, dtype=dtype, device="meta").mT
    return torch.empty(2, rows + 1, width + 2, 3, dtype=dtype, device="meta")[:, 1:, 1:-1, 1]


def _quantized_launch(case: Case) -> Launch:
    shape = (2, _SLOTS, case.rows)
    key = torch.empty(*shape, case.key_dim, dtype=case.dtype, device="meta")
    value = torch.empty(*shape, case.value_dim, dtype=case.dtype, device="meta")
    if case.dtype.is_floating_point:
        padded = -(-case.rows // 16) * 16
        value = torch.empty(2, _SLOTS, case.value_dim, padded, dtype=case.dtype, device="meta")[..., : case.rows].mT
    key_scale, key_mean, value_scale = (
        torch.empty(size, device="meta") for size in (shape, (2, _SLOTS, case.key_dim), (2, _SLOTS, case.value_dim))
    )
    query = torch.empty(2, case.queries, case.key_dim, dtype=torch.bfloat16, device="meta")
    lengths = torch.empty(2, dtype=torch.int32, device="meta")
    target = Target(case.architecture, _PROCESSORS)
    operands = QuantizedOperands(query, key, key_scale, key_mean, value, value_scale, lengths)
    return plan_forward_quantized(operands, 1.0, target)[2]


def source(launch: Launch) -> ASTSource:
    """The launch as the compiler wants it, specialized on its arguments as the launcher would."""
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


def _gluon_source(launch: Any) -> ASTSource:
    """Like source(), for a Gluon kernel, whose tensor descriptors have their own types."""
    from triton.experimental.gluon._runtime import GluonASTSource

    descriptors = {
        name: f"tensordesc<{_TYPES[given.base.dtype]}[{','.join(map(str, given.block_shape))}],{given.layout!r}>"
        for name, given in launch.arguments.items()
        if hasattr(given, "block_shape")
    }
    found = source(launch._replace(arguments=launch.arguments | dict.fromkeys(descriptors, 0.0)))
    return GluonASTSource(launch.kernel, found.signature | descriptors, found.constants, found.attrs)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    listing = run_tool("cuobjdump", "--dump-resource-usage", file=cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    if found is None:
        raise RuntimeError(f"cuobjdump: found no REG and STACK in {listing!r}")
    return int(found[1]), int(found[2])
