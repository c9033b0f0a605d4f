"""stm-fast segment: masks, an overlay and other results of a video."""

from pathlib import Path
from typing import Annotated

import typer

from stm_fast.boxes import Boxes, boxes_of_options
from stm_fast.commands.cluster import Cluster, refuse_torchrun
from stm_fast.commands.memory import Memory
from stm_fast.commands.numbers import real
from stm_fast.commands.options import (
    Backend,
    MaxSize,
    MinSize,
    Network,
    Overwrite,
    Write,
    input_option,
    memory_option,
    output_option,
    results,
    run_options,
)
from stm_fast.errors import InputError, require_folder, require_present
from stm_fast.frame_source import STALL_SECONDS, frame_sources
from stm_fast.printing import reserve_stdout
from stm_fast.progress import waiting
from stm_fast.runs.output_folder import OutputOptions, check_output, plan
from stm_fast.runs.ranks import launched
from stm_fast.store import StoreUrl, place_of


def segment(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="These videos are segmented: video files, or folders of jpg, png, webp or tif frames. One of them may "
            "also be an image glob in quotes ('frames/*.png'), a URL, a camera (camera:0), a named pipe, or - for "
            "standard input. Videos and folders may be in a store (s3://bucket/clip.mp4, gs:// or az://); a pattern "
            "there, in quotes, stands for all videos that match ('s3://bucket/*.mp4').",
        ),
    ],
    output: Annotated[
        str,
        output_option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="The results are written into this folder, or below this URL in a store, which is empty or does not "
            "exist. Each of several videos gets a subfolder.",
        ),
    ],
    network: Network,
    memory: Memory,
    masks: Annotated[
        str | None,
        input_option(
            "--masks",
            "-m",
            metavar="FILE|FOLDER",
            help="The objects are given by this mask, of object ids or in black and white, for the first frame or the "
            "frame that it is named after (00066.png); by a folder of masks named after their frames; by a TIFF with a "
            "page for each frame; or by annotations of COCO, YouTube-VIS or LabelMe. For several videos the folder "
            "contains one of these for each, named after it. They may be in a store.",
        ),
    ] = None,
    mask_frame: Annotated[
        str | None,
        input_option(
            metavar="FRAME",
            help="A single mask belongs to this frame, whatever its own name: a frame's name, or its index from 0.",
        ),
    ] = None,
    both: Annotated[
        bool,
        input_option("--both", help="The frames before the first mask are segmented too, backwards from it."),
    ] = False,
    box: Annotated[
        list[str] | None,
        input_option(
            metavar="X,Y,WIDTH,HEIGHT[@FRAME]",
            help="An object is given by a box around it, in pixels, in the first frame or in the one after the @; this "
            "can be repeated. A number and a colon before it give the object's id. The mask, which a small network "
            "makes of it, is written into the folder 'given' of the output.",
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        input_option(
            metavar="FILE",
            help="Objects are given by the boxes in this file: CSV with the columns frame, object, x, y, width and "
            "height, or JSON: {frame: {object: \\[x, y, width, height]}}.",
        ),
    ] = None,
    max_size: MaxSize = None,
    min_size: MinSize = None,
    backend: Backend = "auto",
    write: Write = "masks,overlay,csv",
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, output_option("--resume", help="The interrupted run in the output folder goes on where it stopped.")
    ] = False,
    allow_network: Annotated[
        bool,
        input_option(
            "--allow-network",
            help="The network is used for a SOURCE that is a URL; one in a store needs no permission.",
        ),
    ] = False,
    stall_seconds: Annotated[
        float,
        input_option(
            **real(0, 10**7), help="A camera, pipe or stream that gives no frame for so many seconds has ended."
        ),
    ] = STALL_SECONDS,
    drop_frames: Annotated[
        bool,
        input_option(
            "--drop-frames",
            help="Of a camera, pipe or stream, only the newest frame is segmented whenever the network is ready.",
        ),
    ] = False,
    overlay_stream: Annotated[
        str | None,
        output_option(
            metavar="FILE",
            help="The overlay is also streamed, as it is segmented, to this new .ts or .mkv file, named pipe, or - "
            "(standard output). After --resume, only the frames that are left; with --both, only those from the first "
            "mask on.",
        ),
    ] = None,
    checkpoint_seconds: Annotated[
        float,
        output_option(
            **real(0, 10**7),
            help="Checkpoints are at least this many seconds apart, and take at most a tenth of the time.",
        ),
    ] = 60.0,
    cluster: Cluster = None,
    shard_memory: Annotated[
        bool,
        memory_option(
            "--shard-memory", help="Under torchrun, the memory of one video is split among all the processes."
        ),
    ] = False,
) -> None:
    """Segment a video from masks or boxes in some of its frames; writes masks, an overlay, and a table of the objects.

    Several videos are processed one after the other; under torchrun they are split among the processes, and with --ray
    they are given to the workers of a cluster. Running the same command again skips finished videos and resumes the
    others.
    """
    world = launched().world  # refuses invalid environment variables before any work
    if cluster is not None:
        _check_cluster(world, overlay_stream, shard_memory)
    parsed = [
        source
        for text in sources
        for source in frame_sources(
            text, allow_network=allow_network, stall_seconds=stall_seconds, drop_frames=drop_frames
        )
    ]
    videos = len(parsed)
    target, given_masks = place_of(output), None if masks is None else place_of(masks)
    if resume and overwrite:
        raise InputError("--resume: found with --overwrite, expected one of them")
    if shard_memory and isinstance(target, StoreUrl):
        raise InputError(f"--shard-memory: found with {target}, expected a local output folder")
    if shard_memory and (videos > 1 or world == 1):
        found = f"{videos} videos and {world} processes"
        raise InputError(f"--shard-memory: found {found}, expected one video, and processes that torchrun starts")
    if videos > 1 and mask_frame is not None:
        raise InputError(f"--mask-frame: found {mask_frame} with {videos} videos, expected one")
    if videos > 1 and overlay_stream is not None:
        raise InputError(f"--overlay-stream: found {overlay_stream} with {videos} videos, expected one")
    options = run_options(memory, max_size, min_size, backend)
    outputs = OutputOptions(results(write), overwrite, resume, checkpoint_seconds, overlay_stream=overlay_stream)
    given = _boxes(box or [], boxes, given_masks, videos)
    jobs = [job._replace(mask_frame=mask_frame, both=both, boxes=given) for job in plan(parsed, given_masks, target)]
    if len(jobs) > 1 and masks is not None:
        if isinstance(given_masks, Path):
            require_folder(given_masks, "of masks, expected one that has masks for each video")
    elif world == 1:  # with several processes, another one may already be writing there
        parsed[0].check()
        if resume and parsed[0].live:
            raise InputError(f"{parsed[0].label}: a live source can be read only once, found --resume")
        if isinstance(given_masks, Path):
            require_present(given_masks, "mask file or folder of masks")
        check_output(target, overwrite, jobs[0].inputs, resume=resume)
    if overlay_stream == "-":
        reserve_stdout()
    with waiting("loading PyTorch"):
        from stm_fast.tasks.segment import segment_videos

    code = segment_videos(
        jobs,
        network=network,
        options=options,
        outputs=outputs,
        shard_memory=shard_memory,
        cluster=cluster,
    )
    raise typer.Exit(code)


def _check_cluster(world: int, overlay_stream: str | None, shard_memory: bool) -> None:
    """Raises InputError for what a cluster cannot do."""
    refuse_torchrun(world)
    for option, given in (("--overlay-stream", overlay_stream is not None), ("--shard-memory", shard_memory)):
        if given:
            raise InputError(f"--ray: found with {option}, expected one of them")


def _boxes(texts: list[str], file: Path | None, masks: Path | StoreUrl | None, videos: int) -> Boxes:
    """The boxes of a video. Raises InputError if there are neither boxes nor masks, or boxes for several videos."""
    boxes = boxes_of_options(texts, file)
    if boxes.prompts and videos > 1:
        raise InputError(f"{'--box' if texts else '--boxes'}: found with {videos} videos, expected one")
    if masks is None and not boxes.prompts:
        raise InputError("--masks: missing, expected masks" + (", or --box or --boxes" if videos == 1 else ""))
    return boxes
