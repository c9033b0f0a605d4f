"""Compiles the read of a quantised memory for every architecture, without a GPU, and holds it to compile_gate's limits.

python -m stm_fast.kernels.compile_gate_quantised
"""

import sys
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from stm_fast.kernels.compile_gate import FEWEST_REGISTERS, TENSOR_MEMORY, resources, source
from stm_fast.kernels.configs_quantised import OLDEST_FP8
from stm_fast.kernels.forward_quantised import QuantisedOperands, plan_forward_quantised
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.targets import ARCHITECTURES, SHARED_MEMORY, Target


class QuantisedCase(NamedTuple):
    """An architecture, the dtype of the memory, and Ck, Cv and R: whole tiles or odd ones."""

    architecture: int
    dtype: torch.dtype
    key_dim: int = 128
    value_dim: int = 512
    rows: int = 1620

    def __str__(self) -> str:
        dtype = "int8" if self.dtype == torch.int8 else "fp8"
        return f"sm_{self.architecture:<4}{dtype:5}{self.key_dim:4}/{self.value_dim:<4}R {self.rows:<5}"


class QuantisedCompiled(NamedTuple):
    """Registers and bytes of stack of a thread, shared (bytes) and tensor memory (columns), and wgmma instructions."""

    case: QuantisedCase
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    wgmma: int

    def __str__(self) -> str:
        memory = f"{self.stack:6} {self.shared / 1024:7.1f} {self.tensor_memory:5} {self.wgmma:6}"
        return f"{self.case}{self.registers:5} {memory}"


HEADER = f"{'arch':7}{'dtype':6}{'Ck/Cv':8}{'rows':8} regs  stack  KiB sm  tmem  wgmma"


def quantised_cases() -> list[QuantisedCase]:
    """Every tile, with the widths of a usual network, of the package's own weights, and odd ones."""
    dtypes = {a: (torch.int8, torch.float8_e4m3fn) if a >= OLDEST_FP8 else (torch.int8,) for a in ARCHITECTURES}
    whole = [QuantisedCase(architecture, dtype) for architecture in ARCHITECTURES for dtype in dtypes[architecture]]
    narrow = [
        QuantisedCase(architecture, dtype, 80, 128) for architecture in (90, 100) for dtype in dtypes[architecture]
    ]
    odd = [QuantisedCase(90, dtype, 33, 300, 77) for dtype in dtypes[90]]
    return whole + narrow + odd


def quantised_launch(case: QuantisedCase) -> Launch:
    """The launch that the engine would make; the tensors have no storage."""
    shape = (2, 5, case.rows)
    key = torch.empty(*shape, case.key_dim, dtype=case.dtype, device="meta")
    value = torch.empty(*shape, case.value_dim, dtype=case.dtype, device="meta")
    if case.dtype.is_floating_point:
        padded = -(-case.rows // 16) * 16
        value = torch.empty(2, 5, case.value_dim, padded, dtype=case.dtype, device="meta")[..., : case.rows].mT
    key_scale, key_mean, value_scale = (
        torch.empty(size, device="meta") for size in (shape, (2, 5, case.key_dim), (2, 5, case.value_dim))
    )
    query = torch.empty(2, 1620, case.key_dim, dtype=torch.bfloat16, device="meta")
    lengths = torch.empty(2, dtype=torch.int32, device="meta")
    target = Target(case.architecture, 132)
    operands = QuantisedOperands(query, key, key_scale, key_mean, value, value_scale, lengths)
    return plan_forward_quantised(operands, 1.0, target)[2]


def compile_quantised(case: QuantisedCase) -> QuantisedCompiled:
    launch = quantised_launch(case)
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    compiled = triton.compile(source(launch), target=GPUTarget("cuda", case.architecture, 32), options=options)
    registers, stack = resources(compiled.asm["cubin"])
    tensor_memory = getattr(compiled.metadata, "tmem_size", None) or 0
    wgmma = compiled.asm["ptx"].count("wgmma.mma_async")
    return QuantisedCompiled(case, registers, stack, compiled.metadata.shared, tensor_memory, wgmma)


def quantised_breaches(compiled: QuantisedCompiled) -> list[str]:
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
    if case.architecture == 90 and not compiled.wgmma:
        found.append("no wgmma")
    return [f"{case}: {breach}" for breach in found]


def main() -> int:
    print(f"Triton {triton.__version__}\n{HEADER}")
    problems, chosen = [], quantised_cases()
    for case in chosen:
        compiled = compile_quantised(case)
        problems += quantised_breaches(compiled)
        print(compiled, flush=True)
    print("\n".join(problems) or f"{len(chosen)} kernels, no limit broken")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
