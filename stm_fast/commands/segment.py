"""stm-fast segment: masks and an overlay of a video."""

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
    load_model,
    print_summary,
    progress_bar,
    task_name,
)
from stm_fast.config import MemoryConfig
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
    every: Annotated[int, typer.Option(min=1, help="Every N-th frame stays in the memory.")] = 5,
    max_size: Annotated[
        int | None, typer.Option(help="Frames whose shorter side has more pixels are made that small.")
    ] = None,
    overlay: Annotated[Overlay, typer.Option(help="What to look at beside the masks.")] = Overlay.VIDEO,
    device: Device = "auto",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Segment a video from the masks of some of its frames; writes palette PNG masks and an overlay."""
    model = load_model(weights, arch, device)
    with progress_bar(task_name(weights)) as advance:
        summary = segment_video(
            source,
            masks,
            output,
            model=model,
            memory=MemoryConfig(every=every),
            max_size=max_size,
            backend=backend,
            overlay=overlay.value,
            overwrite=overwrite,
            progress=advance,
        )
    print_summary(summary, weights)
