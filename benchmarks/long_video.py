"""What a long video costs: frames per second, latency, bank and memory over the frames.

Every policy and storage, and the published loop until it reaches a memory limit; each in a process of its
own. Weights are random: figures of speed and memory, not of masks. The time of a frame is from the image in memory to
its object ids; drawing it is not counted.

python benchmarks/long_video.py --frames 10000 --size 240p --objects 1 --output benchmarks/results/long-video.json
"""

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from stm_fast.benchmarking.measuring import resident_bytes
from stm_fast.benchmarking.published_loop import PublishedLoop
from stm_fast.benchmarking.records import Record, describe_machine
from stm_fast.benchmarking.report import Table
from stm_fast.config import MemoryConfig
from stm_fast.data.sequences import Ids
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import split_mask
from stm_fast.network import STM, stm_resnet18, stm_resnet50
from stm_fast.network.deploy import for_inference
from stm_fast.runs.loop import Segmenter, run
from stm_fast.video import Frame

PUBLISHED = "published loop"
SIZES = {"96p": (96, 160), "240p": (240, 432), "480p": (480, 864), "1080p": (1080, 1920)}
POLICIES = ("everything", "first and previous", "oldest", "least used", "even")
STORAGES = ("bfloat16", "int8", "fp8", "host", "disk")
RUNS = (*POLICIES, *STORAGES, PUBLISHED)


@dataclass(frozen=True)
class Work:
    """What every run does."""

    frames: int
    size: str
    objects: int
    every: int
    cap: int
    backbone: str
    decoder_dim: int
    threads: int
    windows: int
    limit_gb: float
    minutes: float


@dataclass(frozen=True)
class Window:
    """Consecutive frames; memory, other than the peak, is that after the last of them."""

    last_frame: int
    frames_per_second: float
    p50_ms: float
    p95_ms: float
    bank_mb: float
    resident_mb: float
    peak_mb: float


@dataclass(frozen=True)
class VideoRow:
    """A run: why it ended, and its windows up to then."""

    run: str
    ended: str
    windows: list[Window]


def main(
    frames: int = 300,
    size: Annotated[str, typer.Option(help=", ".join(SIZES))] = "240p",
    objects: int = 1,
    run: Annotated[list[str], typer.Option(help=f"Some of: {', '.join(RUNS)}.")] = list(RUNS),  # noqa: B006
    every: Annotated[int, typer.Option(help="Every N-th frame is kept.")] = 5,
    cap: Annotated[int, typer.Option(help="How many frames are kept, where frames are evicted.")] = 20,
    backbone: str = "resnet18",
    decoder_dim: Annotated[int, typer.Option(help="The decoder is most of a small network's time.")] = 256,
    threads: int = 2,
    windows: Annotated[int, typer.Option(help="Points of each curve.")] = 50,
    limit_gb: Annotated[float, typer.Option(help="Memory beyond which a run is ended.")] = 8,
    minutes: Annotated[float, typer.Option(help="Time after which a run is ended.")] = 60,
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Prints the first and the last window of every run; the last line is one JSON object."""
    unknown = set(run) - set(RUNS)
    if unknown:
        raise typer.BadParameter(f"--run: found {sorted(unknown)}, expected some of {', '.join(RUNS)}")
    work = Work(frames, size, objects, every, cap, backbone, decoder_dim, threads, windows, limit_gb, minutes)
    record = Record[VideoRow](describe_machine(device()), asdict(work))
    for name in run:
        record.rows.append(in_own_process(name, work))
        print(*table(record.rows[-1]).lines(), sep="\n")
        if output is not None:
            record.write(output)
    print(record.to_json())


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def in_own_process(name: str, work: Work) -> VideoRow:
    """The run's windows, and why it ended."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        progress = Path(folder) / "windows.json"
        try:
            ended = pool.submit(measure, name, work, progress).result()
        except BrokenProcessPool:
            ended = "the process died"
        lines = progress.read_text().splitlines() if progress.exists() else []
    return VideoRow(name, ended, [Window(**json.loads(line)) for line in lines])


def measure(name: str, work: Work, progress: Path) -> str:
    """Runs one variant and writes a line for every window; returns why it ended."""
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    height, width = SIZES[work.size]
    clip = SyntheticClip(0, frames=work.frames, height=height, width=width, objects=work.objects)
    build = {"resnet18": stm_resnet18, "resnet50": stm_resnet50}[work.backbone]
    model = build(decoder_dim=work.decoder_dim).to(device()).eval()
    segmenter, bank_bytes = variant(name, work, model, progress.parent)
    times: list[float] = []
    window, index, start = max(1, work.frames // work.windows), 0, time.monotonic()
    limit_memory(work.limit_gb)

    @contextmanager
    def measure() -> Iterator[None]:
        began = time.perf_counter()
        yield
        times.append(time.perf_counter() - began)

    def after(done: int) -> None:
        nonlocal index
        if len(times) == window or done == work.frames:
            lines.write(json.dumps(asdict(window_of(index, times, bank_bytes()))) + "\n")
            times.clear()
        if time.monotonic() - start > 60 * work.minutes:
            raise RuntimeError("out of time")
        index = done

    def prompt(frame: Frame, known: list[int]) -> tuple[Ids, None] | None:
        return None if known else (clip[0].ids, None)

    frames = (Frame(number, float(number), str(number), drawn.image) for number, drawn in enumerate(clip))
    with progress.open("w", buffering=1) as lines:
        try:
            run(frames, prompt, segmenter, lambda segmented: None, measure=measure, after=after)
        except (RuntimeError, MemoryError) as error:
            return f"frame {index}: {str(error).splitlines()[0]}"
    return "the end"


class Published:
    """The published loop as a `Segmenter`."""

    def __init__(self, model: STM, every: int) -> None:
        self.loop = PublishedLoop(model, every)
        self.object_ids: list[int] = []

    def step(self, frame: Tensor, mask: Tensor | None = None, objects: list[int] | None = None) -> Tensor:
        planes = None
        if mask is not None:
            self.object_ids, planes = split_mask(mask.to(device()), objects)
        return self.loop.step(frame.to(device()) / 255, planes)[: 1 + len(self.object_ids)]


def variant(name: str, work: Work, model: STM, folder: Path) -> tuple[Segmenter, Callable[[], int]]:
    """What segments every frame, and the size of its bank."""
    if name == PUBLISHED:
        published = Published(model, work.every)
        loop = published.loop
        return published, lambda: 0 if loop.keys is None else loop.keys.nbytes + loop.values.nbytes
    segmenter = VideoSegmenter(for_inference(model), memory=memory_of(name, work, folder), min_size=1)
    return segmenter, lambda: segmenter.bank.nbytes


def memory_of(name: str, work: Work, folder: Path) -> MemoryConfig:
    """The configuration of a policy, capped where it evicts, or of a storage that keeps everything."""
    if name == "everything":
        return MemoryConfig(every=work.every)
    if name == "first and previous":
        return MemoryConfig(every=None)
    if name in POLICIES:
        return MemoryConfig(every=work.every, max_frames=work.cap, evict=name.replace(" ", "_"))
    if name in ("host", "disk"):
        return MemoryConfig(every=work.every, place=name, folder=folder if name == "disk" else None)
    return MemoryConfig(every=work.every, storage=name)


def limit_memory(gigabytes: float) -> None:
    """Makes allocations fail beyond this much more than is allocated now, before the machine runs out."""
    taken = resident_bytes("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (taken + int(gigabytes * 1e9), resource.RLIM_INFINITY))


def window_of(last_frame: int, times: list[float], bank_bytes: int) -> Window:
    median, late = (1e3 * value for value in (statistics.median(times), sorted(times)[int(0.95 * (len(times) - 1))]))
    on_gpu = device() == "cuda"
    resident = torch.cuda.memory_allocated() if on_gpu else resident_bytes("VmRSS")
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM")
    rate = len(times) / sum(times)
    return Window(last_frame, rate, median, late, bank_bytes / 1e6, resident / 1e6, peak / 1e6)


def table(row: VideoRow) -> Table:
    """The first and the last window."""
    head = ["window", *(field.name for field in fields(Window))]
    ends = {"first": row.windows[:1], "last": row.windows[-1:]}
    lines = [[name, *(f"{value:.5g}" for value in vars(found[0]).values())] for name, found in ends.items() if found]
    return Table(head, lines, f"{row.run}: ended with {row.ended}")


if __name__ == "__main__":
    typer.run(main)
