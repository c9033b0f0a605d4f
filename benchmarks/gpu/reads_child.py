"""Times parts of the reads: python -m gpu.reads_child RECORD SECONDS PART [PART ...] [--tiny] [--without ROUTE,...].

Rows are added to the record after every shape and dtype. A GPU that can no longer be used ends the process with LOST.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu.contestants import contestants
from stm_fast.benchmarking import ROUTES, Record, Selection, parse_shape, read_record, run_benchmark, write_record
from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.workload import DTYPES

LOST = 4
# each one's first call takes seconds of compiling
COMPILED = ("compile", "compile-dynamic", "flex", "flex-32x32", "flex-64x32", "flex-64x64")
FORWARD_ALONE = ("int8", "fp8")
UNCOMPILED = tuple(route for route in ROUTES if route not in (*COMPILED, *FORWARD_ALONE, "cpp", "reference"))
OURS = ("triton", "triton-channels", "portable")
DECIDING = tuple(contestants())  # layouts, the bank, graphs, tiles
TARGETS = ("480p-T20-O3", "480p-T20-O1", "480p-T1-O1")
LONGER = ("480p-T5-O1", "480p-T100-O1", "1080p-T20-O1", "480p-T1000-O1")
LARGEST = LONGER[-1]  # too large for a CPU; it launches the kernels of T100
_TINY = ("2x3-T1-O2",)


@dataclass(frozen=True)
class Part:
    """What is timed in the same rounds, for so many seconds a shape and dtype."""

    shapes: tuple[str, ...]
    passes: tuple[str, ...]
    routes: tuple[str, ...]
    dtypes: tuple[str, ...] = ("bfloat16",)
    seconds: float = 4.0


# what is asked first is timed first
PARTS = {
    "forward": Part(TARGETS, ("forward",), (*UNCOMPILED, *FORWARD_ALONE, *DECIDING)),
    "backward": Part(TARGETS[:2], ("backward",), (*UNCOMPILED, "triton-channels")),
    "top-k": Part(TARGETS[:2], ("top-k",), (*UNCOMPILED, "triton-channels"), seconds=2.0),
    "longer": Part(LONGER, ("forward",), ("published", "sdpa-efficient", *OURS, "int8", "fp8"), seconds=2.0),
    "other dtypes": Part(
        TARGETS[1:2],
        ("forward", "backward"),
        ("published", "published-tf32", "sdpa-efficient", *OURS),
        ("float16", "float32"),
        seconds=2.0,
    ),
    "compiled": Part(TARGETS[:1], ("forward",), ("published", "triton", *COMPILED), seconds=2.0),
}


def main() -> int:
    arguments = _arguments()
    ROUTES.update(contestants())
    end = time.monotonic() + arguments.seconds
    record = _record(arguments.record)
    quick = arguments.tiny or arguments.compile_only
    for name in arguments.parts:
        part = PARTS[name]
        routes = [route for route in part.routes if route not in arguments.without]
        shapes = _TINY if arguments.tiny else part.shapes
        if arguments.compile_only:
            routes = [route for route in routes if route in (*FORWARD_ALONE, "triton") or route in DECIDING]
            shapes = tuple(shape for shape in shapes if shape != LARGEST)
        selection = Selection(
            shapes=tuple(map(parse_shape, shapes)),
            dtypes=tuple(DTYPES[dtype] for dtype in part.dtypes),
            passes=part.passes,
            routes=tuple(routes),
            device="cuda",
            seconds=0.0 if quick else part.seconds,
            rounds=1 if quick else 5,
            product=64 if quick else None,
            deadline=max(0.0, end - time.monotonic()),
        )
        record.settings["parts"][name] = selection.describe()
        write_record(record, arguments.record)  # what was started shows, however it ends
        for rows in run_benchmark(selection, lambda message: print(message, flush=True)):
            record.rows += rows
            write_record(record, arguments.record)
        if not _usable():
            return LOST
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--without", default=(), type=lambda text: text.split(","))
    return parser.parse_args()


def _record(path: Path) -> Record:
    return read_record(path) if path.exists() else Record(describe_machine("cuda"), {"parts": {}})


def _usable() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
