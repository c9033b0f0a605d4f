"""What the memory read of each model of the STM family takes as published, and with stm_fast in its place.

python benchmarks/drop_in.py --output benchmarks/results/drop-in-cpu-<instructions>.json

Random features of a 480p frame (30 x 54 pixels at stride 16), channels first, in the shapes of each model's own code.
The published reads are written here again, from their formulas. Both are interleaved, round by round.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from stm_fast.benchmarking.measuring import Call, WallClock, interleaved, quantiles
from stm_fast.benchmarking.records import PUBLISHED, Record, describe_machine
from stm_fast.benchmarking.report import Table, seconds_text
from stm_fast.ops import MemoryRead
from stm_fast.ops.adapters import AOTLongTermAttention, MiVOSMemoryReader, do_softmax, get_similarity, stcn_read

HEIGHT, WIDTH = 30, 54
OURS = "stm_fast"
FRAMES, OBJECTS = (5, 20), (1, 3)


@dataclass(frozen=True)
class DropInRow:
    """One read of one model; seconds of a call, medians and quantiles over the rounds."""

    model: str
    frames: int
    objects: int
    variant: str  # PUBLISHED or OURS
    rounds: int
    seconds: float
    seconds_20: float
    seconds_80: float


class Reads(NamedTuple):
    """The same read twice."""

    published: Callable[[], object]
    ours: Callable[[], object]


def stm(frames: int, objects: int) -> Reads:
    """STM: keys and values of each object, dense."""
    key, value = _memory(objects, 128, frames), _memory(objects, 512, frames)
    query, query_value = _frame(objects, 128), _frame(objects, 512)
    read = MemoryRead()

    def published() -> Tensor:
        score = key.flatten(2).mT @ query.flatten(2) / math.sqrt(128)  # [O, N, M]
        out = value.flatten(2) @ score.softmax(1)
        return torch.cat([out.view_as(query_value), query_value], 1)

    return Reads(published, lambda: read(key, value, query, query_value)[0])


def stcn(frames: int, objects: int) -> Reads:
    """STCN at test time: one affinity for all objects, the 20 largest scores of each query."""
    key, value, query = _memory(1, 64, frames), _memory(objects, 512, frames), _frame(1, 64)
    memory, values, pixels = key.flatten(2), value.flatten(2), query.flatten(2)

    def published() -> Tensor:
        score = (2 * memory.mT @ pixels - memory.square().sum(1)[..., None]) / math.sqrt(64)  # [1, N, M]
        return values @ sparse(score, 20).expand(objects, -1, -1)

    return Reads(published, lambda: stcn_read(memory, pixels, values, top_k=20))


def mivos(frames: int, objects: int, *, sigma: float | None = None) -> Reads:
    """MiVOS: STM's read over the 50 largest scores of each query, with or without KMN's Gaussian."""
    key, value, query = _memory(objects, 128, frames), _memory(objects, 512, frames), _frame(1, 128)
    reader = MiVOSMemoryReader(50, sigma)

    def published() -> Tensor:
        score = key.flatten(2).mT @ (query.flatten(2) / math.sqrt(128))
        if sigma is not None:
            score = score - _distances(score.argmax(2)) / (2 * sigma**2)
        return value.flatten(2) @ sparse(score, 50)

    return Reads(published, lambda: reader(key, value, query).flatten(2))


def _distances(best: Tensor) -> Tensor:
    """Squared, in pixels, of every pixel from those that are best for the memory rows: [O, N] to [O, N, M]."""
    y, x = torch.arange(HEIGHT), torch.arange(WIDTH)
    rows, columns = (best // WIDTH)[..., None] - y, (best % WIDTH)[..., None] - x  # [O, N, H], [O, N, W]
    return (rows.square()[..., None] + columns.square()[..., None, :]).flatten(2)


def aot(frames: int, objects: int) -> Reads:
    """AOT's long-term attention, 8 heads of 32; its objects share one feature map."""
    del objects
    layer = AOTLongTermAttention(256, 8, use_linear=False)
    query, (key, value) = torch.randn(HEIGHT * WIDTH, 1, 256), torch.randn(2, frames * HEIGHT * WIDTH, 1, 256)

    def published() -> Tensor:
        heads = [tensor.unflatten(2, (8, 32)).permute(1, 2, 0, 3) for tensor in (query, key, value)]
        score = heads[0] / math.sqrt(32) @ heads[1].mT  # [1, 8, M, N]
        read = score.softmax(3) @ heads[2]
        return layer.projection(read.permute(2, 0, 1, 3).flatten(2))

    return Reads(published, lambda: layer(query, key, value)[0])


def xmem(frames: int, objects: int, *, usage: bool) -> Reads:
    """XMem, Cutie, DEVA at test time: one affinity for all objects, the 30 largest scores, with or without usage."""
    key, value, query = _memory(1, 64, frames), _memory(objects, 512, frames), _frame(1, 64)
    shrinkage, selection = 1 + _memory(1, 1, frames).square(), _frame(1, 64).sigmoid()
    memory, values, pixels, weight = (tensor.flatten(2) for tensor in (key, value, query, selection))

    def published() -> list[Tensor]:
        cross, square = memory.mT @ (pixels * weight), memory.square().mT @ weight
        score = 2 * cross - square - (weight * pixels.square()).sum(1, keepdim=True)  # [1, N, M]
        affinity = sparse(score * shrinkage.flatten(2).mT / math.sqrt(64), 30)
        return [values @ affinity, *([affinity.sum(2)] if usage else [])]

    def ours() -> list[Tensor]:
        similarity = get_similarity(memory, shrinkage.flatten(2), pixels, weight)
        if not usage:
            return [values @ do_softmax(similarity, top_k=30)]
        affinity, total = do_softmax(similarity, top_k=30, return_usage=True)
        return [values @ affinity, total]

    return Reads(published, ours)


def sparse(score: Tensor, count: int) -> Tensor:
    """The affinity [B, N, M] of the `count` largest scores of each query, in place of the scores."""
    largest, rows = score.topk(count, dim=1)
    return score.zero_().scatter_(1, rows, largest.softmax(1))


def _memory(batch: int, width: int, frames: int) -> Tensor:
    return torch.randn(batch, width, frames, HEIGHT, WIDTH)


def _frame(batch: int, width: int) -> Tensor:
    return torch.randn(batch, width, HEIGHT, WIDTH)


MODELS: dict[str, Callable[[int, int], Reads]] = {
    "STM": stm,
    "MiVOS, top 50": mivos,
    "MiVOS, top 50, KMN's Gaussian": partial(mivos, sigma=7.0),
    "STCN, top 20": stcn,
    "AOT, 8 heads": aot,
    "XMem, top 30": partial(xmem, usage=False),
    "XMem, top 30, usage": partial(xmem, usage=True),
}


def measured(model: str, frames: int, objects: int, rounds: int) -> Iterator[DropInRow]:
    """Both variants of a read, whose results are compared first."""
    torch.manual_seed(0)
    reads = MODELS[model](frames, objects)
    for ours, published in zip(reads.ours(), reads.published(), strict=True):
        # rounding decides which of two almost equal scores is the last that top-k keeps
        assert (ours - published).norm() < 1e-2 * published.norm(), f"{model}: the results differ"
    calls = [Call(lambda _: None, lambda _, read=read: read()) for read in reads]
    clock = WallClock()
    readings = interleaved([lambda _, call=call: clock.measure(call, None) for call in calls], 0, rounds)
    for variant, found in zip((PUBLISHED, OURS), readings, strict=True):
        if isinstance(found, str):
            raise RuntimeError(f"{model}, {variant}: {found}")
        times = quantiles(found)
        seconds = {name: times[name] for name in ("seconds", "seconds_20", "seconds_80")}
        yield DropInRow(model, frames, objects, variant, rounds, **seconds)


def table(rows: Sequence[DropInRow]) -> Table:
    """A line for each read: both times, and how many times as fast the second is."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row.model, row.frames, row.objects), {})[row.variant] = row.seconds
    lines = []
    for (model, frames, objects), seconds in found.items():
        ratio = seconds[PUBLISHED] / seconds[OURS]
        name = f"{model}; {frames} frames, {objects} object{'s' * (objects > 1)}"
        lines.append([name, seconds_text(seconds[PUBLISHED]), seconds_text(seconds[OURS]), f"{ratio:.1f} times"])
    return Table(("read", "as published", "with stm_fast", "faster"), lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON.")] = Path("drop-in.json"),
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    record = Record[DropInRow](describe_machine("cpu"), {"rounds": rounds, "size": f"{HEIGHT} x {WIDTH}"})
    for model in MODELS:
        for frames in FRAMES:
            for objects in OBJECTS if model != "AOT, 8 heads" else OBJECTS[:1]:
                record.rows += measured(model, frames, objects, rounds)
                record.write(output)
    print(*table(record.rows).lines(), sep="\n")


if __name__ == "__main__":
    typer.run(main)
