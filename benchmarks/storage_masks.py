"""What a bank's storage changes in the masks: J between those of a float32 bank and of every other, frame by frame.

python benchmarks/storage_masks.py --frames 40 --size 240p --video clip.mp4=first_mask.png --output storage-masks.json
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from stm_fast.benchmarking.machine import describe_machine
from stm_fast.config import MemoryConfig
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation import region_similarity
from stm_fast.inference import VideoSegmenter
from stm_fast.network import STM
from stm_fast.network.released import DEFAULT
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.network import load_for_inference
from stm_fast.video import open_frames, read_mask
from stm_fast.whole_file import whole_file

STORAGES = ("bfloat16", "float16", "int8", "fp8")
HEIGHTS = {"96p": (96, 160), "240p": (240, 432), "480p": (480, 864)}


class Clip(NamedTuple):
    name: str
    frames: list[Tensor]  # [3, H, W] uint8
    mask: Tensor  # [H, W] ids of the first


def main(
    frames: int = 12,
    size: Annotated[str, typer.Option(help=f"Of drawn clips: {', '.join(HEIGHTS)}.")] = "96p",
    seeds: Annotated[int, typer.Option(help="How many drawn clips.")] = 2,
    video: Annotated[list[str], typer.Option(help="More clips: VIDEO=FIRST_MASK.")] = [],  # noqa: B006
    weights: Path = Path(DEFAULT),
    max_size: int = 240,
    every: int = 1,
    threads: int = 2,
    output: Path | None = None,
) -> None:
    """Prints the mean and the smallest J of every storage; the last line is one JSON object."""
    torch.set_num_threads(threads)
    model = load_for_inference(NetworkChoice(weights, device="cpu"))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for clip in clips(frames, HEIGHTS[size], seeds, video):
        whole = masks(model, clip, MemoryConfig(every=every), max_size)
        results[clip.name] = {}
        for storage in STORAGES:
            found = masks(model, clip, MemoryConfig(every=every, storage=storage), max_size)
            similarity = agreement(found[1:], whole[1:])
            results[clip.name][storage] = {"mean": float(np.mean(similarity)), "smallest": float(np.min(similarity))}
            print(f"{clip.name} {storage}: J {np.mean(similarity):.4f}, smallest {np.min(similarity):.4f}")
    record = {"machine": describe_machine("cpu"), "weights": weights.name, "every": every, "J": results}
    if output is not None:
        with whole_file(output) as partial:
            partial.write_text(json.dumps(record, indent=1))
    print(json.dumps(record))


def clips(frames: int, size: tuple[int, int], seeds: int, videos: list[str]) -> Iterator[Clip]:
    for seed in range(seeds):
        drawn = SyntheticClip(seed, frames=frames, height=size[0], width=size[1], objects=3)
        pictures = [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in drawn]
        yield Clip(f"synthetic {seed}", pictures, torch.from_numpy(drawn[0].ids))
    for pair in videos:
        source, _, mask = pair.partition("=")
        reader = open_frames(source)
        pictures = [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in islice(reader, frames)]
        yield Clip(reader.name, pictures, torch.from_numpy(read_mask(mask).ids))


def masks(model: STM, clip: Clip, memory: MemoryConfig, max_size: int) -> list[Tensor]:
    segmenter = VideoSegmenter(model, memory=memory, max_size=max_size)
    return [result.mask for result in segmenter.propagate(clip.frames, {0: clip.mask})]


def agreement(found: list[Tensor], whole: list[Tensor]) -> list[float]:
    """J of every object that either mask has, of every frame."""
    return [
        region_similarity((one == object_id).numpy(), (other == object_id).numpy())
        for one, other in zip(found, whole, strict=True)
        for object_id in sorted({*one.unique().tolist(), *other.unique().tolist()} - {0})
    ]


if __name__ == "__main__":
    typer.run(main)
