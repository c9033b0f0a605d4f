"""What memory_read() costs the processor on a device of stubs, of this source tree compared with others.

    python benchmarks/host_cost.py [--against TREE] [--rounds 200] [--output FILE]

cuda_stub.c replaces CUDA's runtime and driver: every call of theirs succeeds at once, memory is the host's, and no
kernel runs. So a call costs what Python, PyTorch, its caching allocator and Triton's own launcher take; a driver adds
two or three microseconds a launch. Kernels are compiled for sm_90. Needs a PyTorch built for CUDA, Triton and gcc, and
no GPU. The trees are interleaved, round by round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

HERE = Path(__file__).resolve()
LIBRARY = "libcuda.so.1"
PIXELS, CALLS = 30 * 54, 50
# those of the CUDA that PyTorch calls go first; Triton has all, of an older CUDA in some of its versions
HEADERS = (
    Path(torch.__file__).parents[1] / "nvidia" / f"cu{str(torch.version.cuda).split('.')[0]}" / "include",
    Path(triton.__file__).parent / "backends" / "nvidia" / "include",
)


@dataclass(frozen=True)
class HostRow:
    """Processor time of a call of one source tree."""

    call: str
    tree: str
    median_us: float  # of all rounds
    least_us: float  # of any round: what it costs where nothing else disturbs the machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, action="append", default=[], help="another source tree")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        answer()
        return
    # not in a child, where another tree's package is imported
    from stm_fast.benchmarking.records import Record, describe_machine
    from stm_fast.benchmarking.report import pivot

    trees = [HERE.parents[1], *given.against]
    record = Record(describe_machine("cpu"), {"rounds": given.rounds}, compare(trees, given.rounds))
    if given.output is not None:
        record.write(given.output)
    cells: dict[str, dict[str, str]] = {}
    for row in record.rows:
        cells.setdefault(row.call, {})[row.tree] = f"{row.median_us:.1f} ({row.least_us:.1f})"
    machine = record.machine
    print(f"{machine['cpu']}, Python {machine['python']}, torch {machine['torch']}, Triton {machine['triton']}")
    print(*pivot("us a call, median (least)", list(map(str, trees)), cells).lines(), sep="\n")


def compare(trees: list[Path], rounds: int) -> list[HostRow]:
    """The processor time of every call with every tree, interleaved."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        build_stub(Path(folder))
        children = {
            str(tree): start(linked(tree.resolve(), Path(folder, str(number))), Path(folder))
            for number, tree in enumerate(trees)
        }
        for _ in range(rounds):
            for tree, child in children.items():
                assert child.stdin is not None
                assert child.stdout is not None
                print(file=child.stdin, flush=True)
                for call, microseconds in json.loads(child.stdout.readline()).items():
                    found[call, tree].append(microseconds)
        for child in children.values():
            child.terminate()
    return [HostRow(*names, statistics.median_high(times), min(times)) for names, times in found.items()]


def build_stub(folder: Path) -> None:
    """The stubs as the library that PyTorch, by LD_PRELOAD, and Triton find instead of the driver."""
    command = ["gcc", "-O1", "-shared", "-fPIC", "-w", *(f"-I{path}" for path in HEADERS), f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*command, str(HERE.with_name("cuda_stub.c")), "-o", str(folder / LIBRARY), "-ldl"], check=True)


def linked(tree: Path, folder: Path) -> Path:
    """A folder with the package of a source tree as it is installed: with the kernels in it."""
    package = folder / "stm_fast"
    package.mkdir(parents=True)
    for entry in {*(tree / "stm_fast").iterdir()} - {tree / "stm_fast" / "kernels"}:
        (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(tree / "kernels")
    return folder


def start(folder: Path, stub: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": str(stub / LIBRARY),
        "TRITON_LIBCUDA_PATH": str(stub),
    }
    command = [sys.executable, str(HERE), "--child"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer() -> None:
    """In a child: for each line of stdin the microseconds of every call, of one round."""
    reads, with_gradients = named_calls()
    for _ in sys.stdin:
        found = {}
        for name, call in {**reads, **with_gradients}.items():
            with torch.inference_mode(name in reads):
                found[name] = microseconds(call)
        print(json.dumps(found), flush=True)


def microseconds(call: Callable[[], object]) -> float:
    for _ in range(10):
        call()
    begin = time.thread_time_ns()
    for _ in range(CALLS):
        call()
    return (time.thread_time_ns() - begin) / CALLS / 1e3


def named_calls() -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Those without gradients and those with them: bfloat16, 480p, Ck 128, Cv 512."""
    from stm_fast.memory import MemoryBank
    from stm_fast.ops import memory_read

    def tensor(*shape: int, **options: Any) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda", **options)

    query, key, value = tensor(1, PIXELS, 128), tensor(1, PIXELS, 128), tensor(1, PIXELS, 512)
    keys, values = tensor(3, 20 * PIXELS, 128), tensor(3, 20 * PIXELS, 512)
    lengths = torch.full((3,), 7 * PIXELS, dtype=torch.int32, device="cuda")
    features = [tensor(1, width, PIXELS).mT for width in (128, 128, 512)]
    leaves = [tensor(1, PIXELS, width, requires_grad=True) for width in (128, 128, 512)]
    bank = MemoryBank()
    bank.append(tensor(1, 128, 30, 54), tensor(1, 512, 30, 54))
    query_feature = tensor(1, 128, 30, 54)

    def backward() -> None:
        memory_read(*leaves).sum().backward()

    reads = {
        "T = 1": lambda: memory_read(query, key, value),
        "T = 1, lse": lambda: memory_read(query, key, value, return_lse=True),
        "T = 20, 3 objects": lambda: memory_read(query, keys, values),
        "T = 20, 3 objects, lengths, lse": lambda: memory_read(query, keys, values, lengths=lengths, return_lse=True),
        "T = 1, channels first, three copies": lambda: memory_read(*features),
        "MemoryBank.read, T = 1, the query is copied": lambda: bank.read(query_feature),
    }
    return reads, {"T = 1, for gradients": lambda: memory_read(*leaves), "T = 1, forward and backward": backward}


if __name__ == "__main__":
    main()
