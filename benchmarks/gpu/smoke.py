"""The first stage: does each kernel run at all, and is it right? Each in a process of its own, in parallel.

python -m gpu.smoke NAME RESULT [--tiny] runs one kernel on one shape against float64. The result is a JSON file.
Outputs start as NaN, so that an element that is not written shows. A kernel that takes more than SECONDS ends the
process, whatever it hangs in.
"""

import faulthandler
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from gpu.routes import portable_tile
from gpu.session import Child, Session, Stage, patience
from stm_fast.benchmarking.timing import unsupported_reason
from stm_fast.kernels.tuned import using
from stm_fast.ops.quantised import memory_read_quantised, quantise_memory
from stm_fast.testing import ReadCase, Tensors, make_tensors
from stm_fast.testing.criterion import Results, allowance, distance
from stm_fast.testing.quantised import exact_read, relative_error, soft_memory
from stm_fast.testing.rounding import rounded_once
from stm_fast.testing.runs import eager_outputs, leaves, read_outputs

SECONDS = 20
READS = ("rows", "portable", "channels")
# dtype of the memory, and the largest relative error, as tests/quantised_engine_cases.py has it for normal numbers
QUANTIZED = {"int8": (torch.int8, 0.014), "fp8": (torch.float8_e4m3fn, 0.064)}
CASES = (*READS, *QUANTIZED)
_LAUNCHING = "launching"


def run(session: Session, stage: Stage, end: float) -> None:
    """Every case, until `end`."""
    with TemporaryDirectory() as folder:
        results = {name: Path(folder, f"{name}.json") for name in CASES}
        children = {name: session.child("gpu.smoke", name, str(results[name]), *session.options) for name in CASES}
        for name, child in children.items():
            stage.found[name] = found = _found(child, results[name], end)
            stage.lines.append(f"  {name:<10}{_verdict(found)}")
            if "not started" in found:
                stage.missed.append(name)
    if not all(found.get("right") for found in stage.found.values()):
        stage.state = "red"


def dangerous(stage: Stage | None) -> list[str]:
    """The cases that hung or crashed: no other process should launch these kernels."""
    return [name for name, found in (stage.found if stage else {}).items() if "ended" in found]


def _found(child: Child, result: Path, end: float) -> dict[str, Any]:
    code = child.wait(end)
    if not result.exists():
        return {"not started": "out of time" if code is None else f"exit code {code}"}
    found = dict(json.loads(result.read_text()))
    if _LAUNCHING not in found:
        return found
    return {"ended": "out of time" if code is None else f"hung for {SECONDS} s, or crashed, exit code {code}"}


def _verdict(found: dict[str, Any]) -> str:
    for what in ("not started", "ended"):
        if what in found:
            return f"{what}: {found[what]}: see the log"
    if "unsupported" in found:
        return f"unsupported: {found['unsupported'][:90]}"
    verdict = "right" if found["right"] else "WRONG"
    return f"{verdict}: error {found['error']:.2e}, allowed {found['allowed']:.2e}, {found['seconds']:.1f} s"


# in a process of its own


def main() -> int:
    name, result, *options = sys.argv[1:]
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    tiny, compile_only = "--tiny" in options, "--compile-only" in options
    launch = _read if name in READS else _quantized
    start = time.monotonic()
    Path(result).write_text(json.dumps({_LAUNCHING: True}))  # is not replaced where the launch does not end
    faulthandler.dump_traceback_later(SECONDS * patience(options), exit=True)
    try:
        judge = launch(name, tiny)
        torch.cuda.synchronize()
        found = {"unsupported": "only compiled"} if compile_only else judge()
    except Exception as error:  # whatever a kernel or its compiler raises is the result
        found = {"unsupported": unsupported_reason(error)}
    Path(result).write_text(json.dumps(found | {"seconds": time.monotonic() - start}))
    return 0


def _read(name: str, tiny: bool) -> Callable[[], dict[str, Any]]:
    """Reads; what it returns compares the result with the criterion."""
    queries, rows = (33, 97) if tiny else (1620, 3240)
    case = ReadCase(
        queries=queries, rows=rows, key_dim=128, value_dim=512, shared_query=True, channels_first=name == "channels"
    )
    tensors = make_tensors(case, torch.bfloat16, "cuda")
    with using(portable_tile(torch.bfloat16, {})) if name == "portable" else nullcontext():
        fused = read_outputs(case, tensors, "triton")
    return partial(_judge, case, tensors, fused)


def _judge(case: ReadCase, tensors: Tensors, fused: Results) -> dict[str, Any]:
    """The largest error and the criterion's allowance, of out and of lse."""
    doubles = leaves(tensors, torch.float64, False)
    exact, eager = read_outputs(case, doubles, "reference"), eager_outputs(case, tensors)
    rounded = rounded_once(case, doubles, torch.bfloat16, {})
    errors = {name: distance(fused[name], exact[name]) for name in fused}
    allowed = {name: allowance(fused[name].dtype, eager[name], rounded[name], exact[name]) for name in fused}
    right = all(errors[name] <= allowed[name] for name in fused)
    return {"right": right, "error": errors["out"], "allowed": allowed["out"]}


def _quantized(name: str, tiny: bool) -> Callable[[], dict[str, Any]]:
    """Reads a memory of one byte a number; what it returns compares the result with the largest error of tests."""
    dtype, allowed = QUANTIZED[name]
    rows = 16 if tiny else 1620
    query, key, value = soft_memory(queries=rows, slots=2, rows=rows, key_dim=128, value_dim=512, device="cuda")
    out = memory_read_quantised(query.bfloat16(), quantise_memory(key, value, dtype), backend="triton")
    assert isinstance(out, torch.Tensor)
    return partial(_judge_quantized, out, (query, key, value), allowed)


def _judge_quantized(out: Tensor, floats: tuple[Tensor, Tensor, Tensor], allowed: float) -> dict[str, Any]:
    error = relative_error(out, exact_read(*floats)[0])
    return {"right": error <= allowed, "error": error, "allowed": allowed}


if __name__ == "__main__":
    sys.exit(main())
