"""Where the milliseconds of a whole frame go: the engine compared with the published loop, by stage, interleaved.

A round is one frame of each variant, with the same memory; figures are medians over the rounds. Every frame is a usual
one: the previous frame is memorized for one step, and the memory keeps its length.
"""

import multiprocessing
import statistics
import tempfile
import timeit
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from stm_fast.benchmarking.measuring import counts_memory, peak_memory
from stm_fast.benchmarking.published_loop import SLOTS, PublishedLoop
from stm_fast.benchmarking.records import PUBLISHED, FrameRow
from stm_fast.benchmarking.shapes import SIZES, FrameWorkload
from stm_fast.choices import Variant
from stm_fast.config import MemoryConfig
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation import region_similarity
from stm_fast.heap import weights_mapped
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import label
from stm_fast.inference.stages import STAGES, StageProfiler
from stm_fast.network import STM
from stm_fast.network.checkpoint import load_network
from stm_fast.network.deploy import for_inference
from stm_fast.network.deploy.precision import has_bfloat16
from stm_fast.video import open_frames, write_mask
from stm_fast.video.writer import OverlayImageWriter

FRAMES = 4  # of the clip, shown in a loop
_SIMILARITY = "similarity"  # measured with the stages of a frame
_NEVER = 10**9  # no frame is its multiple, so the memory keeps its length
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
# with the masks of the published loop, up to rounding in float32
SAME_MASKS = (PUBLISHED, "engine", "prepared", "compiled")
_DESCRIBED = {PUBLISHED: "published loop, in plain PyTorch"} | {name: each.what for name, each in ENGINES.items()}
VARIANTS: dict[str, str] = {name: _DESCRIBED[name] for name in get_args(Variant)}

Step = Callable[[Tensor], Tensor]  # a frame [3, H, W] uint8 to labels [H, W] uint8, both in the host's memory


def usual_variants(device: str) -> tuple[str, ...]:
    """Reduced precision is for devices that have instructions for it."""
    reduced = ["bfloat16"] if has_bfloat16(torch.device(device)) else []
    reduced += ["bfloat16-graphs", "float16"] if device == "cuda" else []
    return (PUBLISHED, "prepared", "no-previous", "bfloat16-memory", *reduced)


@torch.inference_mode()
def time_variants(
    workload: FrameWorkload, variants: Sequence[str], rounds: int, device: str, *, peaks: bool = False
) -> list[FrameRow]:
    """Times variants of one workload, interleaved.

    Args:
        variants: some of VARIANTS; masks are compared with those of the first.
        rounds: frames of each, after one that is not counted.
        peaks: measure each one's peak memory too, in its own process.
    """
    clip = _Clip(workload)
    models = {name: make_model(name, workload, device) for name in variants}
    steps = {name: make_step(name, models[name], workload, clip) for name in variants}
    clocks = {name: StageProfiler(model) for name, model in models.items()}
    readings: dict[str, defaultdict[str, list[float]]] = {name: defaultdict(list) for name in variants}
    for index in range(-1, rounds):
        image = clip.image(index + 2)
        labels = {name: _timed(steps[name], clocks[name], image, readings[name]) for name in variants}
        for name in variants:
            readings[name][_SIMILARITY].append(_similarity(labels[name], labels[variants[0]], workload.objects))
    background = _background_seconds(workload)
    return [
        _row(workload, name, readings[name], peak_bytes(name, workload, device) if peaks else None, background)
        for name in variants
    ]


@weights_mapped()
def make_model(variant: str, workload: FrameWorkload, device: str) -> STM:
    """The variant's network, loaded as commands do; with random weights it is as fast as a trained one."""
    if workload.weights is None:
        torch.manual_seed(0)
        model = STM(workload.backbone)
    else:
        model = load_network(workload.weights)
    model = model.eval().to(device)
    return model if variant == PUBLISHED else ENGINES[variant].prepare(model)


def make_step(variant: str, model: STM, workload: FrameWorkload, clip: "_Clip") -> Step:
    """The variant with its memory filled."""
    if variant == PUBLISHED:
        return _published_step(model, workload, clip)
    return _engine_step(model, workload, clip, ENGINES[variant].memory)


def peak_bytes(variant: str, workload: FrameWorkload, device: str) -> int | None:
    """The most that a variant needs at a time, beyond the loaded network, in its own process.

    None on a CPU whose system does not count it.
    """
    if not counts_memory(device):
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, variant, workload, device, torch.get_num_threads()).result()


class _Clip:
    """The frames of a workload, and a random memory from a seed: the same for every variant."""

    def __init__(self, workload: FrameWorkload) -> None:
        height, width = SIZES[workload.size]
        self._clip = SyntheticClip(
            0, frames=FRAMES, height=height, width=width, objects=workload.objects, object_size=(0.05, 0.12)
        )
        self.ids = torch.from_numpy(self._clip[0].ids)  # [H, W]
        self.objects = workload.objects
        self._rows = (-(-height // 16), -(-width // 16))
        self._images = [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in self._clip]

    def image(self, index: int) -> Tensor:
        """A frame ``[3, H, W]`` uint8."""
        return self._images[index % FRAMES]

    def planes(self) -> Tensor:
        """The objects' masks ``[O, H, W]`` in the first frame."""
        return torch.stack([self.ids == index for index in range(1, self.objects + 1)]).float()

    def memory(self, index: int, model: STM) -> tuple[Tensor, Tensor]:
        """Random key ``[O, Ck, h, w]`` and value ``[O, Cv, h, w]``, as if of one more frame."""
        generator = torch.Generator().manual_seed(index)
        parameter = next(model.parameters())
        key, value = (
            torch.randn(self.objects, width, *self._rows, generator=generator).to(parameter)
            for width in (model.key_dim, model.value_dim)
        )
        return key, value


def _published_step(model: STM, workload: FrameWorkload, clip: _Clip) -> Step:
    loop = PublishedLoop(model, every=_NEVER)
    device = next(model.parameters()).device

    def as_float(image: Tensor) -> Tensor:
        return image.to(device).float() / 255

    loop.step(as_float(clip.image(0)), clip.planes().to(device))
    loop.step(as_float(clip.image(1)))
    assert loop.keys is not None
    assert loop.values is not None
    keys = loop.keys.new_zeros(SLOTS, model.key_dim, workload.memory_frames, *loop.keys.shape[3:])
    values = loop.values.new_zeros(SLOTS, model.value_dim, workload.memory_frames, *loop.values.shape[3:])
    keys[:, :, :1], values[:, :, :1] = loop.keys, loop.values
    for index in range(1, workload.memory_frames):
        keys[1 : 1 + clip.objects, :, index], values[1 : 1 + clip.objects, :, index] = clip.memory(index, model)
    loop.keys, loop.values = keys, values
    return lambda image: loop.step(as_float(image)).argmax(0).to(torch.uint8).cpu()


def _engine_step(model: STM, workload: FrameWorkload, clip: _Clip, memory: MemoryConfig) -> Step:
    segmenter = VideoSegmenter(model, memory=replace(memory, frames=workload.memory_frames), min_size=1)
    segmenter.step(clip.image(0), clip.ids)
    segmenter.step(clip.image(1))
    for index in range(1, workload.memory_frames):
        segmenter.bank.append(*clip.memory(index, model))
    return lambda image: label(segmenter.step(image), segmenter.object_ids).cpu()


def _timed(step: Step, clock: StageProfiler, image: Tensor, readings: defaultdict[str, list[float]]) -> Tensor:
    """Labels of a frame; the seconds it took go into `readings`."""
    clock.seconds.clear()
    with clock:
        clock.start()
        labels = step(image)
        readings["frame"].append(clock.stop())
    for stage in STAGES:
        readings[stage].append(clock.seconds[stage])
    return labels


def _similarity(labels: Tensor, others: Tensor, objects: int) -> float:
    """J, mean over the objects, between two label images ``[H, W]``."""
    planes = torch.arange(1, objects + 1, dtype=labels.dtype)[:, None, None]  # [O, 1, 1]
    return float(region_similarity((labels == planes).numpy(), (others == planes).numpy()).mean())


def _row(
    workload: FrameWorkload,
    name: str,
    readings: dict[str, list[float]],
    peak: int | None,
    background: dict[str, float],
) -> FrameRow:
    # the first frame of a variant warms up
    counted = {stage: seconds[1:] for stage, seconds in readings.items()}
    frame = sorted(counted.pop("frame"))
    similarity = statistics.mean(counted.pop(_SIMILARITY))
    low, high = (frame[round(share * (len(frame) - 1))] for share in (0.2, 0.8))
    stages = {stage: statistics.median(seconds) for stage, seconds in counted.items()}
    median = statistics.median(frame)
    return FrameRow(workload, name, len(frame), median, low, high, stages, similarity, peak, background)


@torch.inference_mode()
def _peak(variant: str, workload: FrameWorkload, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    clip = _Clip(workload)
    model = make_model(variant, workload, device)
    # what libraries load at a first call does not count
    small = replace(workload, size="64p", memory_frames=1)
    make_step(variant, model, small, _Clip(small))(clip.image(0)[:, :64, :112])
    with peak_memory(device) as memory:
        step = make_step(variant, model, workload, clip)
        for index in range(2):
            step(clip.image(index))
    return memory.bytes


def _background_seconds(workload: FrameWorkload, rounds: int = 5) -> dict[str, float]:
    """Median seconds of decoding a JPEG and of writing a PNG of masks, which run in parallel with the network."""
    height, width = SIZES[workload.size]
    clip = SyntheticClip(0, frames=1, height=height, width=width)
    with tempfile.TemporaryDirectory() as folder:
        OverlayImageWriter(folder).write("00000", clip[0].image)
        calls = {
            "decode": lambda: list(open_frames(folder)),
            "write": lambda: write_mask(Path(folder) / "mask.png", clip[0].ids),
        }
        return {name: statistics.median(timeit.repeat(call, number=1, repeat=rounds)) for name, call in calls.items()}
