"""stm-fast segment: masks and an overlay of a video."""

from pathlib import Path
from typing import Annotated

import typer

import stm_fast.tasks as tasks
from stm_fast.choices import Overlay
from stm_fast.commands.memory import Memory
from stm_fast.commands.numbers import real
from stm_fast.commands.options import Backend, MaxSize, MinSize, Network, Overwrite, run_options
from stm_fast.errors import InputError, require_folder, require_present
from stm_fast.runs.output_folder import OutputOptions, check_inputs, check_output, plan
from stm_fast.runs.ranks import launched


def segment(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE", help="Video files, or folders of jpg, png or webp frames.")
    ],
    masks: Annotated[
        Path,
        typer.Option(
            "--masks",
            "-m",
            help="Mask of object ids, or in black and white: of the first frame, or of the one whose name it has "
            "(00066.png), or a folder of them, named as their frames. Of several videos: a folder that has either for "
            "each, named as the video.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A folder that is empty or does not exist; several videos get one each in it."
        ),
    ],
    network: Network,
    memory: Memory,
    mask_frame: Annotated[
        str | None,
        typer.Option(
            metavar="FRAME",
            help="The frame that one PNG is of, whatever its name: a frame's name, or its index from 0.",
        ),
    ] = None,
    max_size: MaxSize = None,
    min_size: MinSize = None,
    backend: Backend = "auto",
    overlay: Annotated[Overlay, typer.Option(help="What to look at besides the masks.")] = "video",
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run that the output folder holds.")
    ] = False,
    checkpoint_seconds: Annotated[
        float,
        typer.Option(
            **real(0, 10**7), help="Between two checkpoints, at least; they take a tenth of the time at most."
        ),
    ] = 60.0,
    shard_memory: Annotated[
        bool, typer.Option("--shard-memory", help="Under torchrun: all processes share the memory of one video.")
    ] = False,
) -> None:
    """Segment a video from the masks of some of its frames; writes palette PNG masks and an overlay.

    Several videos are done one after the other, and shared out under torchrun; the same command again skips those that
    are finished and resumes the others.
    """
    world = launched().world  # before work: what the environment says must make sense
    if resume and overwrite:
        raise InputError("--resume: found with --overwrite, expected one of them")
    if shard_memory and (len(sources) > 1 or world == 1):
        found = f"{len(sources)} videos and {world} processes"
        raise InputError(f"--shard-memory: found {found}, expected one video, and processes that torchrun starts")
    if len(sources) > 1 and mask_frame is not None:
        raise InputError(f"--mask-frame: found {mask_frame} with {len(sources)} videos, expected one")
    options = run_options(network, memory, max_size, min_size, backend)
    jobs = plan(sources, masks, output)
    if len(jobs) > 1:
        require_folder(masks, "of masks, expected one that has masks for each video")
        check_inputs(jobs)
    elif world == 1:  # of several processes another one may be writing there already
        require_present(sources[0], "file or folder")
        require_present(masks, "mask file or folder of masks")
        check_output(output, overwrite, (sources[0], masks), resume=resume)
    code = tasks.segment_videos(
        [job._replace(mask_frame=mask_frame) for job in jobs],
        network=network,
        options=options,
        outputs=OutputOptions(overlay, overwrite, resume, checkpoint_seconds),
        shard_memory=shard_memory,
    )
    raise typer.Exit(code)
