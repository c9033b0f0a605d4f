"""stm-fast segment: masks and an overlay of a video."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch.distributed as distributed
import typer

from stm_fast.commands.bulk import Segment, clear, segment_many
from stm_fast.commands.common import (
    DEFAULT_WEIGHTS,
    Arch,
    Backend,
    Compile,
    Device,
    MaxSize,
    MinSize,
    Overwrite,
    Precision,
    Weights,
    is_untrained,
    load_for_inference,
    print_summary,
    print_untrained,
    progress_bar,
    smallest_side,
    task_name,
)
from stm_fast.commands.interruption import how_to_resume, stop_on_signals
from stm_fast.commands.memory import (
    Every,
    Eviction,
    FirstAndPrevious,
    Folder,
    Graph,
    MaxBytes,
    MaxFrames,
    MemoryPlace,
    Storage,
    memory_config,
)
from stm_fast.errors import InputError
from stm_fast.inference import InterruptedRun, Summary, segment_video
from stm_fast.inference.bulk import Job, check_inputs, plan
from stm_fast.inference.estimation import Estimate
from stm_fast.inference.shards import process_group, rank, shard, world_size
from stm_fast.memory import RankLostError

_RANK_LOST = 1


class Overlay(StrEnum):
    VIDEO = "video"
    PICTURES = "pictures"
    NONE = "none"


def segment(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Video files, or folders of jpg, png or webp frames.")
    ],
    masks: Annotated[
        Path,
        typer.Option(
            "--masks",
            "-m",
            help="PNG of object ids: of the first frame, or of the one whose name it has (00066.png), or a folder of "
            "them, named as their frames. Of several videos: a folder that has either for each, named as the video.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A folder that is empty or does not exist; several videos get one each in it."
        ),
    ],
    mask_frame: Annotated[
        str | None,
        typer.Option(
            metavar="FRAME",
            help="The frame that one PNG is of, whatever its name: a frame's name, or its index from 0.",
        ),
    ] = None,
    weights: Weights = DEFAULT_WEIGHTS,
    arch: Arch = None,
    every: Every = 5,
    first_and_previous: FirstAndPrevious = False,
    max_memory_frames: MaxFrames = None,
    max_memory_bytes: MaxBytes = None,
    evict: Eviction = "oldest",
    memory_storage: Storage = "model",
    memory_place: MemoryPlace = "device",
    memory_folder: Folder = None,
    memory_graph: Graph = False,
    max_size: MaxSize = None,
    min_size: MinSize = None,
    overlay: Annotated[Overlay, typer.Option(help="What to look at beside the masks.")] = Overlay.VIDEO,
    device: Device = "auto",
    dtype: Precision = "float32",
    compile: Compile = None,
    backend: Backend = "auto",
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run that the output folder holds.")
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Between two checkpoints, at least; they take a tenth of the time at most.")
    ] = 60.0,
    shard_memory: Annotated[
        bool, typer.Option("--shard-memory", help="Under torchrun: all processes share the memory of one video.")
    ] = False,
) -> None:
    """Segment a video from the masks of some of its frames; writes palette PNG masks and an overlay.

    Several videos are done one after the other, and shared out under torchrun; the same command again skips those that
    are finished and goes on with those that are not.
    """
    if resume and overwrite:
        raise InputError("--resume: found with --overwrite, expected one of them")
    if shard_memory and (len(sources) > 1 or world_size() == 1):
        found = f"{len(sources)} videos and {world_size()} processes"
        raise InputError(f"--shard-memory: found {found}, expected one video, and processes that torchrun starts")
    several = len(sources) > 1
    if several and mask_frame is not None:
        raise InputError(f"--mask-frame: found {mask_frame} with {len(sources)} videos, expected one")
    jobs = _jobs(sources, masks, output) if several else []
    memory = memory_config(
        every,
        first_and_previous,
        max_memory_frames,
        max_memory_bytes,
        evict,
        memory_storage,
        memory_place,
        memory_folder,
        memory_graph,
    )
    model = load_for_inference(weights, arch, device, dtype, compile)
    untrained = is_untrained(weights, arch)
    if several and overwrite:
        clear(shard(jobs), masks)
    with stop_on_signals() as stop, process_group(shard_memory) as group:

        def run(source: Path, masks: Path, output: Path, advance: Callable[[int, int | None], None]) -> Summary:
            return segment_video(
                source,
                masks,
                output,
                model=model,
                mask_frame=mask_frame,
                memory=memory,
                max_size=max_size,
                min_size=smallest_side(weights, arch, min_size, max_size),
                backend=backend,
                overlay=overlay.value,
                overwrite=overwrite,
                resume=resume or (several and not overwrite),
                checkpoint_seconds=checkpoint_seconds,
                leave_record=several,
                group=group,
                should_stop=stop,
                progress=advance,
                estimated=_print_estimate,
            )

        try:
            code = (
                segment_many(jobs, masks, run) if several else _segment_one(sources[0], masks, output, run, untrained)
            )
        except InterruptedRun as error:
            raise _ended(error, stop.exit_code) from None
        except RankLostError as error:
            raise _ended(error, _RANK_LOST) from None
    if several and untrained:
        print_untrained()
    raise typer.Exit(code)


def _jobs(sources: list[Path], masks: Path, output: Path) -> list[Job]:
    jobs = plan(sources, output)
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder of masks, expected one that has masks for each video")
    check_inputs(jobs, masks)
    return jobs


def _segment_one(source: Path, masks: Path, output: Path, run: Segment, untrained: bool) -> int:
    """One video, by all processes where they share its memory, else by the first."""
    if rank() == 0:
        with progress_bar(task_name(untrained)) as advance:
            summary = run(source, masks, output, advance)
        print_summary(summary, untrained)
    elif distributed.is_initialized():
        run(source, masks, output, lambda *_: None)
    return 0


def _print_estimate(estimate: Estimate) -> None:
    if rank() == 0:
        print(f"memory: {estimate}", file=sys.stderr)


def _ended(why: Exception, code: int) -> typer.Exit:
    print(f"stm-fast: {why}", file=sys.stderr)
    if rank() == 0:
        print(how_to_resume(), file=sys.stderr)
    return typer.Exit(code)
