"""stm-fast open: draw around objects in the browser, track and correct them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.choices import PrompterName
from stm_fast.commands.memory import Memory
from stm_fast.commands.numbers import whole
from stm_fast.commands.options import (
    Backend,
    MinSize,
    Network,
    input_option,
    network_option,
    output_option,
    page_option,
    run_options,
)
from stm_fast.errors import InputError
from stm_fast.frame_source import FrameSource, frame_source
from stm_fast.network.architecture import MIN_SIZES
from stm_fast.page.listening import FIRST_PORT, LOOPBACK, require_page
from stm_fast.progress import waiting
from stm_fast.runs.ranks import launched

# a 4K frame would take seconds
_MAX_SIZE = 480
# the time to read the memory is proportional to its frames; each fifth one of a long video would be far too many
_MAX_MEMORY_FRAMES = 50


def open(
    network: Network,
    memory: Memory,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="This video is opened: a video file, a folder of jpg, png, webp or tif frames, a TIFF file, an image "
            "glob in quotes, or the folder of a project to go on with. Without it, the page asks for a video.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "--output",
            "-o",
            show_default=False,
            help="The project is kept in this folder: every mask, as it is made. By default its name is that of the "
            "video and '-project'. If the project of this video is there already, it goes on.",
        ),
    ] = None,
    prompter: Annotated[
        PrompterName,
        input_option(
            help="Masks are made of boxes, lassos and clicks by the package's network, by GrabCut, or by SAM 2 through "
            "transformers."
        ),
    ] = "network",
    prompter_weights: Annotated[
        str | None,
        input_option(
            metavar="WEIGHTS",
            help="With network, the weights are those of this file. SAM 2 is loaded from this folder, or as this "
            "repository of the Hugging Face hub (user/repo).",
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        network_option(
            **whole(16, MIN_SIZES[1]),
            show_default=False,
            help="Frames whose shorter side has more pixels than this are downscaled for the network. By default this "
            f"is {_MAX_SIZE}, or --min-size if that is larger.",
        ),
    ] = None,
    min_size: MinSize = None,
    backend: Backend = "auto",
    port: Annotated[
        int | None,
        page_option(
            **whole(0, 65_535),
            show_default=False,
            help=f"The page is served on this port, 0 for any free one; by default {FIRST_PORT} or the next free one.",
        ),
    ] = None,
    host: Annotated[
        str,
        page_option(
            metavar="HOST",
            help="The page is served on this address of this machine; by default, other machines cannot reach it.",
        ),
    ] = LOOPBACK,
    no_browser: Annotated[
        bool, page_option("--no-browser", help="No browser is opened; only the address of the page is printed.")
    ] = False,
) -> None:
    """Open a video in the browser: draw around objects, track them, correct the masks, and export the results.

    The address of the page is printed. Everything is saved in the project's folder as you work; ctrl-C ends the server.
    The memory holds at most 50 frames of an object, unless another limit is given.
    """
    launched()  # refuses invalid environment variables before any work
    if max_size is None:
        max_size = max(_MAX_SIZE, min_size or 0)
    if not memory.capped:
        memory = replace(memory, max_frames=_MAX_MEMORY_FRAMES)
    options = run_options(memory, max_size, min_size, backend)
    video, folder = _video_and_folder(source, output)
    with waiting("loading PyTorch"):
        require_page()
        from stm_fast.tasks.open import PageOptions, open_page

    page = PageOptions(host, port, not no_browser, prompter, prompter_weights)
    open_page(video, folder, network=network, options=options, page=page)


def _video_and_folder(text: str | None, output: Path | None) -> tuple[FrameSource | None, Path | None]:
    """What to open, and the project's folder; None for what is not given. Raises InputError for unusable sources."""
    if text is None:
        if output is not None:
            raise InputError(f"--output: found {output} without SOURCE, expected a video")
        return None, None
    if (Path(text) / "project.json").is_file():
        if output is not None:
            raise InputError(f"--output: found {output} with {text}, which is a project, expected one of them")
        return None, Path(text)
    source = frame_source(text, allow_network=True)
    if source.kind not in ("path", "glob"):
        found = "a URL" if source.kind in ("url", "store") else "a live source"
        raise InputError(f"{source.label}: found {found}, expected a video file, a folder of images or a glob")
    source.check()
    return source, output
