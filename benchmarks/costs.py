"""What networks and their memory cost: frames of every network, masks of every storage, tensors kept for training.

python benchmarks/costs.py networks                    480p, 1 and 3 objects: results/networks-cpu-<instructions>.json
python benchmarks/costs.py networks 480p-T10-O1 --rounds 3
python benchmarks/costs.py masks --frames 40 --size 240p --video clip.mp4=first.png --output storage-masks.json
python benchmarks/costs.py training                    counts tensors: the same on every machine
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from stm_fast import STM, save_checkpoint, stm_lite0, stm_lite2, stm_resnet18, stm_resnet18_half
from stm_fast.benchmarking.frames import time_variants
from stm_fast.benchmarking.records import FrameRow, Record, describe_machine
from stm_fast.benchmarking.report import Table, stage_table
from stm_fast.benchmarking.routes import published
from stm_fast.benchmarking.shapes import parse_workload
from stm_fast.benchmarking.workload import KEY_DIM, VALUE_DIM
from stm_fast.config import MemoryConfig
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation import region_similarity
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network.deploy.precision import has_bfloat16
from stm_fast.network.released import DEFAULT
from stm_fast.ops import memory_read
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.network import load_for_inference
from stm_fast.video import open_frames, read_mask

STORAGES = ("bfloat16", "float16", "int8", "fp8")
SIZES = {"96p": (96, 160), "240p": (240, 432), "480p": (480, 864)}
STRIDE = 16
# height, width, frames in memory, objects: the last frame of the paper's training clips, then larger and longer ones
TRAINING_CLIPS = ((384, 384, 2, 3), (480, 864, 2, 3), (480, 864, 7, 3))

RESULTS = Path(__file__).resolve().parent / "results"
LITE: dict[str, Callable[[], STM]] = {"stm_lite2": stm_lite2, "stm_lite0": stm_lite0}
RESNETS: dict[str, Callable[[], STM]] = {"stm_resnet18_half": stm_resnet18_half, "stm_resnet18": stm_resnet18}

app = typer.Typer()


@app.command()
def networks(
    workloads: Annotated[list[str] | None, typer.Argument(metavar="480p-T10-O1")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    output: Path | None = None,
) -> None:
    """Whole frames of the package's networks with random weights, plain, prepared and in bfloat16, with peak memory.

    Where a CPU has no instructions for bfloat16, PyTorch takes minutes for a ResNet's frame: there only networks on
    EfficientNet-Lite, whose bottlenecks are the package's own, run in it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = (output or RESULTS / f"networks-{_kind(device)}.json").resolve()
    record = Record[FrameRow](describe_machine(device), {"rounds": rounds})
    reduced = has_bfloat16(torch.device(device))
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # records name the weights without their folder
        for name, build in (LITE | RESNETS).items():
            torch.manual_seed(0)
            save_checkpoint(build(), f"{name}.safetensors")
            variants = ["engine", "prepared", *(["bfloat16"] if reduced or name in LITE else [])]
            for workload in workloads or ["480p-T10-O1", "480p-T10-O3"]:
                parsed = parse_workload(workload, f"{name}.safetensors")
                rows = time_variants(parsed, variants, rounds, device, peaks=True)
                record.rows += rows
                record.write(output)
                print("", *stage_table(rows).lines(), sep="\n", flush=True)


def _kind(device: str) -> str:
    """A device in names of results: a CPU with the extension's instruction set."""
    if device == "cuda":
        return device
    from stm_fast import _C

    return f"{device}-{_C.instructions()}"


@dataclass(frozen=True)
class StorageRow:
    """J between the masks of a bank of another storage and those of a float32 bank, over objects and frames."""

    clip: str
    storage: str
    mean: float
    smallest: float


class Clip(NamedTuple):
    name: str
    frames: list[Tensor]  # [3, H, W] uint8
    mask: Tensor  # [H, W] ids of the first


@app.command()
def masks(
    frames: int = 12,
    size: Annotated[str, typer.Option(help=f"Of synthetic clips: {', '.join(SIZES)}.")] = "96p",
    seeds: Annotated[int, typer.Option(help="How many synthetic clips.")] = 2,
    video: Annotated[list[str], typer.Option(help="More clips: VIDEO=FIRST_MASK.")] = [],  # noqa: B006
    weights: Path = Path(DEFAULT),
    max_size: int = 240,
    every: int = 1,
    threads: int = 2,
    output: Path | None = None,
) -> None:
    """What a storage changes in the masks; the last line is one JSON object."""
    torch.set_num_threads(threads)
    model = load_for_inference(NetworkChoice(weights, device="cpu"))
    record = Record[StorageRow](describe_machine("cpu"), {"weights": weights.name, "every": every})
    for clip in clips(frames, SIZES[size], seeds, video):
        exact = segmented(model, clip, MemoryConfig(every=every), max_size)
        for storage in STORAGES:
            found = segmented(model, clip, MemoryConfig(every=every, storage=storage), max_size)
            similarity = similarities(found[1:], exact[1:])
            row = StorageRow(clip.name, storage, float(np.mean(similarity)), float(np.min(similarity)))
            record.rows.append(row)
            print(f"{row.clip} {row.storage}: J {row.mean:.4f}, smallest {row.smallest:.4f}")
    if output is not None:
        record.write(output)
    print(record.to_json())


def clips(frames: int, size: tuple[int, int], seeds: int, videos: list[str]) -> Iterator[Clip]:
    for seed in range(seeds):
        synthetic = SyntheticClip(seed, frames=frames, height=size[0], width=size[1], objects=3)
        images = [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in synthetic]
        yield Clip(f"synthetic {seed}", images, torch.from_numpy(synthetic[0].ids))
    for pair in videos:
        source, _, mask = pair.partition("=")
        reader = open_frames(source)
        images = [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in islice(reader, frames)]
        yield Clip(reader.name, images, torch.from_numpy(read_mask(mask).ids))


def segmented(model: STM, clip: Clip, memory: MemoryConfig, max_size: int) -> list[Tensor]:
    segmenter = VideoSegmenter(model, memory=memory, max_size=max_size, min_size=1)
    return [result.mask for result in segmenter.propagate(clip.frames, {0: clip.mask})]


def similarities(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """J of every object that either mask has, of every frame."""
    return [
        region_similarity((one == object_id).numpy(), (other == object_id).numpy())
        for one, other in zip(found, exact, strict=True)
        for object_id in sorted({*one.unique().tolist(), *other.unique().tolist()} - {0})
    ]


@app.command()
def training() -> None:
    """What a memory read keeps for its backward pass: the fused one and the published matrix products."""
    rows = []
    for height, width, frames, objects in TRAINING_CLIPS:
        pixels = (height // STRIDE) * (width // STRIDE)
        sizes = ((pixels, KEY_DIM), (frames * pixels, KEY_DIM), (frames * pixels, VALUE_DIM))
        inputs = [torch.randn(objects, *size, requires_grad=True) for size in sizes]  # query, key, value
        reads = (published, partial(memory_read, backend="cpp"))
        kept = (f"{kept_bytes(read, *inputs) / 2**20:.1f} MiB" for read in reads)
        rows.append([f"{width}x{height}, T={frames}, O={objects}", *kept])
    print(*Table(["clip", "published", "fused"], rows).lines(), sep="\n")


def kept_bytes(read: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Bytes of the storages that a read keeps until its backward pass, those of its inputs left out."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = read(*inputs)
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept = sum(storage.nbytes() for place, storage in storages.items() if place not in own)
    out.sum().backward()  # what is kept must be enough
    return kept


if __name__ == "__main__":
    app()
