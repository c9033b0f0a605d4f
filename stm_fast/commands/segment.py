"""stm-fast segment: masks and an overlay of a video."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.commands.common import (
    Arch,
    Architecture,
    Backend,
    Device,
    Overwrite,
    Weights,
    load_for_inference,
    print_summary,
    progress_bar,
    task_name,
)
from stm_fast.commands.memory import (
    Every,
    Eviction,
    FirstAndPrevious,
    Folder,
    MaxBytes,
    MaxFrames,
    MemoryPlace,
    Storage,
    memory_config,
)
from stm_fast.inference import segment_video


class Overlay(StrEnum):
    VIDEO = "video"
    PICTURES = "pictures"
    NONE = "none"


def segment(
    source: Annotated[Path, typer.Argument(help="A video file, or a folder of jpg, png or webp frames.")],
    masks: Annotated[
        Path,
        typer.Option(
            "--masks", "-m", help="PNG of object ids: of the first frame, or a folder of them, named as their frames."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder that is empty or does not exist.")],
    weights: Weights = None,
    arch: Arch = Architecture.RESNET18,
    every: Every = 5,
    first_and_previous: FirstAndPrevious = False,
    max_memory_frames: MaxFrames = None,
    max_memory_bytes: MaxBytes = None,
    evict: Eviction = "oldest",
    memory_storage: Storage = "model",
    memory_place: MemoryPlace = "device",
    memory_folder: Folder = None,
    max_size: Annotated[
        int | None, typer.Option(help="Frames whose shorter side has more pixels are made that small.")
    ] = None,
    overlay: Annotated[Overlay, typer.Option(help="What to look at beside the masks.")] = Overlay.VIDEO,
    device: Device = "auto",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Segment a video from the masks of some of its frames; writes palette PNG masks and an overlay."""
    memory = memory_config(
        every,
        first_and_previous,
        max_memory_frames,
        max_memory_bytes,
        evict,
        memory_storage,
        memory_place,
        memory_folder,
    )
    model = load_for_inference(weights, arch, device)
    with progress_bar(task_name(weights)) as advance:
        summary = segment_video(
            source,
            masks,
            output,
            model=model,
            memory=memory,
            max_size=max_size,
            backend=backend,
            overlay=overlay.value,
            overwrite=overwrite,
            progress=advance,
            estimated=lambda estimate: print(f"memory: {estimate}", file=sys.stderr),
        )
    print_summary(summary, weights)
