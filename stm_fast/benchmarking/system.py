"""Where the milliseconds of a whole frame go: the engine beside the published loop, by stage, in turns.

A round is one frame of each contestant, with the same memory; what is told is the median over the rounds. Every frame
is a usual one: the previous frame is memorised for one step, and the memory stays as long as it is.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from stm_fast.benchmarking.published_loop import SLOTS, PublishedLoop
from stm_fast.benchmarking.resident import PeakMemory
from stm_fast.benchmarking.system_workload import SIZES, SystemWorkload
from stm_fast.choices import Contestant
from stm_fast.config import MemoryConfig
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation import region_similarity
from stm_fast.inference import VideoSegmenter
from stm_fast.inference.objects import label
from stm_fast.inference.stages import STAGES, StageProfiler
from stm_fast.network import STM
from stm_fast.network.checkpoint import load_network
from stm_fast.network.deployment import for_inference
from stm_fast.video import open_frames, write_mask
from stm_fast.video.writer import OverlayPictureWriter

PUBLISHED = "published"
FRAMES = 4  # of the clip, shown over and over
_SIMILARITY = "similarity"  # beside the stages, among what is read of a frame
_NEVER = 10**9  # no frame is its multiple, so the memory stays as long as it is
# masks of an untrained network mean nothing: objects that it loses are no reason to leave frames out
_MEMORY = MemoryConfig(every=_NEVER, redetect=False)


@dataclass(frozen=True)
class Engine:
    """One way to run the engine."""

    what: str
    prepare: Callable[[STM], STM]
    memory: MemoryConfig = _MEMORY


ENGINES = {
    "engine": Engine("the network as it is trained", lambda model: model),
    "prepared": Engine("for_inference", for_inference),
    "no-previous": Engine("prepared, without the previous frame", for_inference, replace(_MEMORY, previous=False)),
    "bfloat16-memory": Engine(
        "prepared, memory rows kept in bfloat16", for_inference, replace(_MEMORY, storage="bfloat16")
    ),
    "bfloat16": Engine("prepared, in bfloat16", partial(for_inference, dtype=torch.bfloat16)),
    "compiled": Engine("prepared, torch.compile", partial(for_inference, compile="default")),
    "bfloat16-graphs": Engine(
        "prepared, in bfloat16, CUDA graphs by torch.compile",
        partial(for_inference, dtype=torch.bfloat16, compile="reduce-overhead"),
    ),
    "float16": Engine("prepared, in float16", partial(for_inference, dtype=torch.float16)),
}
_DESCRIBED = {PUBLISHED: "published loop, in plain PyTorch"} | {name: each.what for name, each in ENGINES.items()}
CONTESTANTS: dict[str, str] = {name: _DESCRIBED[name] for name in get_args(Contestant)}

Step = Callable[[Tensor], Tensor]  # a frame [3, H, W] uint8 to labels [H, W] uint8, both in the host's memory


@dataclass(frozen=True)
class SystemRow:
    """What one contestant took for a workload; seconds of a frame, medians over the rounds."""

    workload: SystemWorkload
    contestant: str
    rounds: int
    frame_seconds: float
    frame_seconds_20: float  # quantiles
    frame_seconds_80: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    similarity: float = 1.0  # J between its masks and those of the contestant named first, mean over objects and frames
    peak_bytes: int | None = None  # above the loaded network; None where it was not measured


@torch.inference_mode()
def measure_system(
    workload: SystemWorkload, contestants: Sequence[str], rounds: int, device: str, *, peaks: bool = False
) -> list[SystemRow]:
    """Times contestants in turns on one workload.

    Args:
        contestants: some of CONTESTANTS; masks are compared with those of the first.
        rounds: frames of each, after one that is not counted.
        peaks: measure each one's peak memory too, in a process of its own.
    """
    clip = _Clip(workload)
    models = {name: make_model(name, workload, device) for name in contestants}
    steps = {name: make_step(name, models[name], workload, clip) for name in contestants}
    clocks = {name: StageProfiler(model) for name, model in models.items()}
    readings: dict[str, defaultdict[str, list[float]]] = {name: defaultdict(list) for name in contestants}
    for index in range(-1, rounds):
        picture = clip.picture(index + 2)
        labels = {name: _timed(steps[name], clocks[name], picture, readings[name]) for name in contestants}
        for name in contestants:
            readings[name][_SIMILARITY].append(_similarity(labels[name], labels[contestants[0]], workload.objects))
    return [
        _row(
            workload,
            name,
            readings[name],
            peak_bytes(name, workload, device) if peaks else None,
        )
        for name in contestants
    ]


def make_model(contestant: str, workload: SystemWorkload, device: str) -> STM:
    """The contestant's network; with weights drawn from a seed it works as fast as a trained one."""
    if workload.weights is None:
        torch.manual_seed(0)
        model = STM(workload.backbone)
    else:
        model = load_network(workload.weights)
    model = model.eval().to(device)
    return model if contestant == PUBLISHED else ENGINES[contestant].prepare(model)


def make_step(contestant: str, model: STM, workload: SystemWorkload, clip: "_Clip") -> Step:
    """The contestant with its memory filled."""
    if contestant == PUBLISHED:
        return _published_step(model, workload, clip)
    return _engine_step(model, workload, clip, ENGINES[contestant].memory)


def peak_bytes(contestant: str, workload: SystemWorkload, device: str) -> int:
    """The most that a contestant needs at a time, beyond the loaded network, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, contestant, workload, device, torch.get_num_threads()).result()


def beside_seconds(workload: SystemWorkload, rounds: int = 5) -> dict[str, float]:
    """Seconds of reading a JPEG and writing a PNG of masks, which go on beside the network; medians."""
    clip = SyntheticClip(0, frames=1, height=SIZES[workload.size][0], width=SIZES[workload.size][1])
    with tempfile.TemporaryDirectory() as folder:
        OverlayPictureWriter(folder).write("00000", clip[0].image)
        decode = [_seconds(lambda: list(open_frames(folder))) for _ in range(rounds)]
        write = [_seconds(lambda: write_mask(Path(folder) / "mask.png", clip[0].ids)) for _ in range(rounds)]
    return {"decode": statistics.median(decode), "write": statistics.median(write)}


class _Clip:
    """The frames of a workload, and a memory drawn from a seed: the same for every contestant."""

    def __init__(self, workload: SystemWorkload) -> None:
        height, width = SIZES[workload.size]
        self._clip = SyntheticClip(
            0, frames=FRAMES, height=height, width=width, objects=workload.objects, object_size=(0.05, 0.12)
        )
        self.ids = torch.from_numpy(self._clip[0].ids)  # [H, W]
        self.objects = workload.objects
        self._rows = (-(-height // 16), -(-width // 16))
        self._pictures = [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in self._clip]

    def picture(self, index: int) -> Tensor:
        """A frame ``[3, H, W]`` uint8."""
        return self._pictures[index % FRAMES]

    def planes(self) -> Tensor:
        """The objects' masks ``[O, H, W]`` in the first frame."""
        return torch.stack([self.ids == index for index in range(1, self.objects + 1)]).float()

    def memory(self, index: int, model: STM) -> tuple[Tensor, Tensor]:
        """Key ``[O, Ck, h, w]`` and value ``[O, Cv, h, w]`` of a frame that was never seen."""
        generator = torch.Generator().manual_seed(index)
        parameter = next(model.parameters())
        key, value = (
            torch.randn(self.objects, width, *self._rows, generator=generator).to(parameter)
            for width in (model.key_dim, model.value_dim)
        )
        return key, value


def _published_step(model: STM, workload: SystemWorkload, clip: _Clip) -> Step:
    loop = PublishedLoop(model, every=_NEVER)
    device = next(model.parameters()).device

    def as_float(picture: Tensor) -> Tensor:
        return picture.to(device).float() / 255

    loop.step(as_float(clip.picture(0)), clip.planes().to(device))
    loop.step(as_float(clip.picture(1)))
    assert loop.keys is not None
    assert loop.values is not None
    keys = loop.keys.new_zeros(SLOTS, model.key_dim, workload.memory_frames, *loop.keys.shape[3:])
    values = loop.values.new_zeros(SLOTS, model.value_dim, workload.memory_frames, *loop.values.shape[3:])
    keys[:, :, :1], values[:, :, :1] = loop.keys, loop.values
    for index in range(1, workload.memory_frames):
        keys[1 : 1 + clip.objects, :, index], values[1 : 1 + clip.objects, :, index] = clip.memory(index, model)
    loop.keys, loop.values = keys, values
    return lambda picture: loop.step(as_float(picture)).argmax(0).to(torch.uint8).cpu()


def _engine_step(model: STM, workload: SystemWorkload, clip: _Clip, memory: MemoryConfig) -> Step:
    segmenter = VideoSegmenter(model, memory=replace(memory, frames=workload.memory_frames))
    segmenter.step(clip.picture(0), clip.ids)
    segmenter.step(clip.picture(1))
    for index in range(1, workload.memory_frames):
        segmenter.bank.append(*clip.memory(index, model))
    return lambda picture: label(segmenter.step(picture), segmenter.object_ids).cpu()


def _timed(step: Step, clock: StageProfiler, picture: Tensor, readings: defaultdict[str, list[float]]) -> Tensor:
    """Labels of a frame; what it took goes into `readings`."""
    clock.seconds.clear()
    with clock:
        clock.start()
        labels = step(picture)
        readings["frame"].append(clock.stop())
    for stage in STAGES:
        readings[stage].append(clock.seconds[stage])
    return labels


def _similarity(labels: Tensor, others: Tensor, objects: int) -> float:
    """J, mean over the objects, between two label pictures ``[H, W]``."""
    planes = torch.arange(1, objects + 1, dtype=labels.dtype)[:, None, None]  # [O, 1, 1]
    return float(region_similarity((labels == planes).numpy(), (others == planes).numpy()).mean())


def _row(workload: SystemWorkload, name: str, readings: dict[str, list[float]], peak: int | None) -> SystemRow:
    # the first frame of a contestant warms up
    counted = {stage: seconds[1:] for stage, seconds in readings.items()}
    frame = sorted(counted.pop("frame"))
    similarity = statistics.mean(counted.pop(_SIMILARITY))
    low, high = (frame[round(share * (len(frame) - 1))] for share in (0.2, 0.8))
    stages = {stage: statistics.median(seconds) for stage, seconds in counted.items()}
    return SystemRow(workload, name, len(frame), statistics.median(frame), low, high, stages, similarity, peak)


@torch.inference_mode()
def _peak(contestant: str, workload: SystemWorkload, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    clip = _Clip(workload)
    model = make_model(contestant, workload, device)
    # what libraries load at a first call is no part of it
    small = replace(workload, size="64p", memory_frames=1)
    make_step(contestant, model, small, _Clip(small))(clip.picture(0)[:, :64, :112])
    with PeakMemory(device) as memory:
        step = make_step(contestant, model, workload, clip)
        for index in range(2):
            step(clip.picture(index))
    return memory.bytes


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
