"""The gate from the command line: a table of every kernel."""

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import triton
from triton.backends.compiler import GPUTarget

from gate.cases import FORWARD, hopper_cases, portable_cases, quantized_cases, unvisited
from gate.compiling import HEADER, compile_case, launch_of, source
from gate.limits import breaches

AMD_ARCHITECTURES = ("gfx90a", "gfx942")
PROCESSES = 2


def amd_rows() -> Iterator[str]:
    """What AMD's compiler makes of the forward kernel with the tiles of sm_80; no limit holds there."""
    launch = launch_of(FORWARD._replace(architecture=80))
    for architecture in AMD_ARCHITECTURES:
        target = GPUTarget("hip", architecture, 64)
        compiled = triton.compile(source(launch), target=target, options=launch.options)
        assembly = compiled.asm["amdgcn"]
        counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", assembly))
        yield (
            f"{architecture}: {counts['vgpr_count']} registers, {counts['vgpr_spill_count']} of them spilled, "
            f"{counts['private_segment_fixed_size']} bytes of scratch, "
            f"{compiled.metadata.shared / 1024:.1f} KiB shared, {assembly.count('v_mfma')} matrix instructions"
        )


def main() -> int:
    print(f"Triton {triton.__version__}\n{HEADER}")
    results, problems = [], []
    cases = [*portable_cases(), *quantized_cases(), *hopper_cases()]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        for result in pool.map(compile_case, cases):
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
