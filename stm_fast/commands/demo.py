"""stm-fast demo: a synthetic clip and its segmentation."""

from pathlib import Path
from typing import Annotated

from stm_fast.commands.numbers import whole
from stm_fast.commands.options import Backend, Network, Overwrite, input_option, output_option
from stm_fast.progress import waiting
from stm_fast.runs.output_folder import check_output
from stm_fast.runs.ranks import launched
from stm_fast.whole_file import refuse_links


def demo(
    network: Network,
    output: Annotated[
        Path, output_option("--output", "-o", help="The clip and its segmentation are written into this folder.")
    ] = Path("demo"),
    frames: Annotated[int, input_option(**whole(2, 10**6), help="The clip has this many frames.")] = 30,
    objects: Annotated[int, input_option(**whole(1, 6), help="The clip shows this many objects.")] = 3,
    seed: Annotated[int, input_option(**whole(0, 2**32 - 1), help="Another seed gives another clip.")] = 0,
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw a clip of moving objects, segment it from its first mask, and print how good the masks are."""
    launched()  # refuses invalid environment variables before any work
    check_output(output, overwrite)
    refuse_links(output / "result")
    with waiting("loading PyTorch"):
        from stm_fast.tasks.demo import run_demo

    run_demo(
        output,
        frames=frames,
        objects=objects,
        seed=seed,
        network=network,
        backend=backend,
        overwrite=overwrite,
    )
