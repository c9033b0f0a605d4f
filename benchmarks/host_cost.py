"""What memory_read() costs the processor on a device of stubs, of this source tree beside others.

    python benchmarks/host_cost.py [--against TREE] [--rounds 200]

cuda_stub.c takes the place of CUDA's runtime and driver: every call of theirs succeeds at once, memory is the host's,
and no kernel runs. So a call costs what Python, PyTorch, its caching allocator and Triton's own launcher take; a driver
adds two or three microseconds a launch. Kernels are compiled for sm_90. Needs a PyTorch built for CUDA, Triton and gcc,
and no GPU. The trees take turns, round by round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, action="append", default=[], help="another source tree")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        answer()
        return
    with tempfile.TemporaryDirectory() as folder:
        build_stub(Path(folder))
        compare([HERE.parents[1], *given.against], Path(folder), given.rounds)


def build_stub(folder: Path) -> None:
    """The stubs as the library that PyTorch, by LD_PRELOAD, and Triton find in place of the driver."""
    command = ["gcc", "-O1", "-shared", "-fPIC", "-w", *(f"-I{path}" for path in HEADERS), f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*command, str(HERE.with_name("cuda_stub.c")), "-o", str(folder / LIBRARY), "-ldl"], check=True)


def compare(trees: list[Path], stub: Path, rounds: int) -> None:
    """Prints the table of the median and least processor time a call."""
    children = [start(linked(tree.resolve(), stub / str(number)), stub) for number, tree in enumerate(trees)]
    names, *_ = (json.loads(read_line(child)) for child in children)
    print(f"{cpu()}, Python {sys.version.split()[0]}, torch {torch.__version__}, Triton {triton.__version__}")
    print("processor time in us a call: median of all rounds (least of any), " + ", ".join(map(str, trees)))
    for name in names:
        found: list[list[float]] = [[] for _ in children]
        for _ in range(rounds):
            for times, child in zip(found, children, strict=True):
                times.append(float(ask(child, name)))
        costs = (f"{sorted(times)[rounds // 2]:7.1f} ({min(times):5.1f})" for times in found)
        print(f"{name:60}", *costs)
    for child in children:
        child.terminate()


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


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


def ask(child: subprocess.Popen[str], question: str) -> str:
    assert child.stdin is not None
    print(question, file=child.stdin, flush=True)
    return read_line(child)


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def answer() -> None:
    """In a child: the names of the calls, then the microseconds a call of one round of each call that is asked for."""
    reads, with_gradients = named_calls()
    print(json.dumps([*reads, *with_gradients]), flush=True)
    for line in sys.stdin:
        name = line.strip()
        with torch.inference_mode(name in reads):
            print(microseconds({**reads, **with_gradients}[name]), flush=True)


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
