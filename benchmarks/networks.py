"""The package's networks: whole frames, plain, prepared and in bfloat16, and the blocks of EfficientNet-Lite.

python benchmarks/networks.py frames                          480p, 1 and 3 objects: results/networks-cpu.json
python benchmarks/networks.py frames 480p-T10-O1 --rounds 3
OMP_NUM_THREADS=1 python benchmarks/networks.py blocks --trunk efficientnet_lite2 --dtype float32
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from stm_fast import STM, save_checkpoint, stm_lite0, stm_lite2, stm_resnet18, stm_resnet18_half
from stm_fast.benchmarking import FrameRow, Record, parse_workload
from stm_fast.benchmarking.frames import time_variants
from stm_fast.benchmarking.records import describe_machine
from stm_fast.benchmarking.tables import Table, frame_table
from stm_fast.network.bottleneck_layers import FusedBottleneck, FusedStem
from stm_fast.network.efficientnet import EfficientNetLite, InvertedBottleneck, Stem
from stm_fast.network.precision import has_bfloat16

RESULTS = Path(__file__).resolve().parent / "results"
LITE: dict[str, Callable[[], STM]] = {"stm_lite2": stm_lite2, "stm_lite0": stm_lite0}
RESNETS: dict[str, Callable[[], STM]] = {"stm_resnet18_half": stm_resnet18_half, "stm_resnet18": stm_resnet18}

app = typer.Typer()


@app.command()
def frames(
    workloads: Annotated[list[str] | None, typer.Argument(metavar="480p-T10-O1")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    output: Path | None = None,
) -> None:
    """Times whole frames of several networks with random weights, with peak memory, in one run.

    Where a CPU has no instructions for bfloat16, PyTorch takes minutes for a ResNet's frame: there only networks on
    EfficientNet-Lite, whose bottlenecks are the package's own, run in it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = (output or RESULTS / f"networks-{device}.json").resolve()
    record = Record[FrameRow](describe_machine(device), {"rounds": rounds})
    reduced = has_bfloat16(torch.device(device))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # records name the weights without their folder
        for name, build in (LITE | RESNETS).items():
            torch.manual_seed(0)
            save_checkpoint(build(), f"{name}.safetensors")
            variants = ["engine", "prepared", *(["bfloat16"] if reduced or name in LITE else [])]
            for workload in workloads or ["480p-T10-O1", "480p-T10-O3"]:
                parsed = parse_workload(workload, f"{name}.safetensors")
                rows = time_variants(parsed, variants, rounds, device, peaks=True)
                record.rows += rows
                record.write(output)
                print("", *frame_table(rows).lines(), sep="\n", flush=True)
        os.chdir(before)


@app.command()
def blocks(
    trunk: str = "efficientnet_lite2",
    dtype: str = "float32",
    runs: Annotated[int, typer.Option(min=1)] = 11,
    height: int = 480,
    width: int = 864,
) -> None:
    """Times fused bottlenecks and the stem beside PyTorch's convolutions, interleaved, on one frame; random weights."""
    torch.manual_seed(0)
    network = EfficientNetLite(trunk).to(getattr(torch, dtype)).to(memory_format=torch.channels_last)
    x = torch.rand(1, 3, height, width).to(network.stem.weight).to(memory_format=torch.channels_last)
    figures: dict[str, tuple[float, float, float]] = {}
    with torch.inference_mode():
        for block in (network.stem, *(block for stage in network.stages for block in stage.children())):
            fused = FusedStem(block) if isinstance(block, Stem) else FusedBottleneck(block)
            y = block(x)
            name = f"{len(figures)}: {tuple(x.shape[1:])} -> {tuple(y.shape[1:])}"
            figures[name] = (products(block, x, y) / 1e6, *medians(fused, block, x, runs))
            x = y
    done, ours, theirs = map(sum, zip(*figures.values(), strict=True))
    figures["all"] = (done, ours, theirs)
    rows = [
        [name, f"{ours:.2f} ms", f"{done / ours:.1f} GMAC/s", f"{theirs:.2f} ms", f"{theirs / ours:.2f} x"]
        for name, (done, ours, theirs) in figures.items()
    ]
    title = f"{trunk} {dtype} threads {torch.get_num_threads()}"
    print(*Table(["block", "fused", "rate", "PyTorch", "ratio"], rows, title).lines(), sep="\n")


def products(block: nn.Module, x: Tensor, y: Tensor) -> int:
    """Multiplications and additions of a block from `x` to `y`."""
    if isinstance(block, Stem):
        return y.numel() * block.weight[0].numel()
    assert isinstance(block, InvertedBottleneck)
    expand = 0 if block.expand is None else x[:, 0].numel() * block.expand.weight.numel()
    return expand + y[:, 0].numel() * (block.depthwise.weight.numel() + block.project.weight.numel())


def medians(fused: nn.Module, block: nn.Module, x: Tensor, runs: int) -> tuple[float, float]:
    """Milliseconds of both, after a run that is not counted."""
    times = [(milliseconds(fused, x), milliseconds(block, x)) for _ in range(runs + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return ours, theirs


def milliseconds(module: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    module(x)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    app()
