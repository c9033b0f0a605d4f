"""What the machine code of every kernel is held to.

A kernel beyond a limit would fail at launch (shared memory), compute nothing (tensor memory) or crawl (stack, no
wgmma); Triton's compiler reports none of these.
"""

from gate.compiling import Compiled
from stm_fast.kernels.targets import SHARED_MEMORY

FORWARD_KERNELS = ("forward", "combine", "quantized", "hopper")
BACKWARD_STACK = 192  # bytes that a thread of the other kernels may spill; these spill none
TENSOR_MEMORY = 512  # columns, sm_100
FEWEST_REGISTERS = 17  # a kernel whose body was optimized away needs hardly any
REGISTERS = 65536  # of a block
HOPPER_THREADS = 384  # three partitions of four warps, the producer's filled up


def breaches(compiled: Compiled) -> list[str]:
    """The limits that one compiled case breaks."""
    case, found = compiled.case, []
    stack = 0 if case.kernel.startswith(FORWARD_KERNELS) else BACKWARD_STACK
    if compiled.stack > stack:
        found.append(f"{compiled.stack} bytes of stack, the limit is {stack}")
    if compiled.shared > SHARED_MEMORY[case.architecture] * 1024:
        found.append(f"{compiled.shared} bytes of shared memory, the limit is {SHARED_MEMORY[case.architecture]} KiB")
    if compiled.tensor_memory > TENSOR_MEMORY:
        found.append(f"{compiled.tensor_memory} columns of tensor memory, the limit is {TENSOR_MEMORY}")
    if compiled.registers < FEWEST_REGISTERS:
        found.append(f"{compiled.registers} registers: the kernel is empty")
    if compiled.wgmma < _least_wgmma(compiled):
        found.append(f"{compiled.wgmma} wgmma, expected at least {_least_wgmma(compiled)}")
    if case.layout == "rows" and compiled.narrow:
        found.append(f"{compiled.narrow} loads of two bytes in a loop")
    if case.kernel == "hopper":
        found += _hopper_breaches(compiled)
    return [f"{case}: {breach}" for breach in found]


def _least_wgmma(compiled: Compiled) -> int:
    case, config = compiled.case, compiled.config
    if case.kernel == "hopper":
        # a product of all queries and keys of a step takes a wgmma for every 16 channels, one with values 4
        return config.block_k // 16 + 2 * (config.block_n // 16)
    is_forward = case.kernel.startswith(("forward", "quantized"))
    return int(case.architecture == 90 and case.arithmetic == "half" and is_forward)


def _hopper_breaches(compiled: Compiled) -> list[str]:
    found = []
    if compiled.local_memory:
        found.append(f"{compiled.local_memory} uses of local memory, expected none")
    if compiled.config.maxnreg * HOPPER_THREADS > REGISTERS:
        found.append(f"{compiled.config.maxnreg} registers a thread are more than there are")
    if not compiled.copies:
        found.append("no copy by TMA")
    if compiled.serialized:
        found.append("the wgmma are serialized")
    return found
