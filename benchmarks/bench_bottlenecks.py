"""Fused bottlenecks and stem of EfficientNet-Lite beside PyTorch's convolutions, in the same run.

Folded convolutions, channels last, one frame; weights are random. Each block is run by both in turn.

OMP_NUM_THREADS=1 python benchmarks/bench_bottlenecks.py --trunk efficientnet_lite2 --dtype float32
"""

import statistics
import time
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from stm_fast.network.deploy.bottlenecks import FusedBottleneck, FusedStem
from stm_fast.network.efficientnet import EfficientNetLite, InvertedBottleneck, Stem


def products(block: nn.Module, x: Tensor, y: Tensor) -> int:
    """Multiplications and additions of a block from `x` to `y`."""
    if isinstance(block, Stem):
        return y.numel() * block.weight[0].numel()
    assert isinstance(block, InvertedBottleneck)
    expand = 0 if block.expand is None else x[:, 0].numel() * block.expand.weight.numel()
    return expand + y[:, 0].numel() * (block.depthwise.weight.numel() + block.project.weight.numel())


def milliseconds(module: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    module(x)
    return 1e3 * (time.perf_counter() - start)


def measure(block: nn.Module, fused: nn.Module, x: Tensor, runs: int) -> tuple[float, float]:
    """Medians of both, in milliseconds."""
    times = [(milliseconds(fused, x), milliseconds(block, x)) for _ in range(runs + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return ours, theirs


def show(name: str, done: float, ours: float, theirs: float) -> None:
    """A line: millions of products, and what both took."""
    rate, ratio = done / ours, theirs / ours
    print(f"{name:36} {ours:8.2f} ms  {rate:5.1f} GMAC/s  PyTorch {theirs:8.2f} ms  {ratio:5.2f} x")


def main(
    trunk: str = "efficientnet_lite2",
    dtype: str = "float32",
    runs: Annotated[int, typer.Option(min=1)] = 11,
    height: int = 480,
    width: int = 864,
) -> None:
    """Prints a line for each block and one for all of them."""
    torch.manual_seed(0)
    whole = EfficientNetLite(trunk).to(getattr(torch, dtype)).to(memory_format=torch.channels_last)
    x = torch.rand(1, 3, height, width).to(whole.stem.weight).to(memory_format=torch.channels_last)
    blocks = [whole.stem, *(block for stage in whole.stages for block in stage.children())]
    total = [0.0, 0.0, 0.0]
    with torch.inference_mode():
        for block in blocks:
            fused = FusedStem(block) if isinstance(block, Stem) else FusedBottleneck(block)
            y = block(x)
            done = products(block, x, y) / 1e6
            ours, theirs = measure(block, fused, x, runs)
            show(f"{tuple(x.shape[1:])} -> {tuple(y.shape[1:])}", done, ours, theirs)
            total = [before + part for before, part in zip(total, (done, ours, theirs), strict=True)]
            x = y
    show(f"{trunk} {dtype} threads {torch.get_num_threads()}", *total)


if __name__ == "__main__":
    typer.run(main)
