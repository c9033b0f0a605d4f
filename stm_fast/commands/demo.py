"""stm-fast demo: a synthetic clip and its segmentation."""

from pathlib import Path
from typing import Annotated

import typer

from stm_fast.commands.numbers import whole
from stm_fast.commands.options import Backend, Network, Overwrite
from stm_fast.runs.output_folder import check_output
from stm_fast.runs.ranks import launched
from stm_fast.whole_file import refuse_links


def demo(
    network: Network,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for the clip and its segmentation.")
    ] = Path("demo"),
    frames: Annotated[int, typer.Option(**whole(2, 10**6), help="Number of frames of the clip.")] = 30,
    objects: Annotated[int, typer.Option(**whole(1, 6), help="Number of objects in the clip.")] = 3,
    seed: Annotated[int, typer.Option(**whole(0, 2**32 - 1), help="Seed of the clip.")] = 0,
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw a clip of moving objects, segment it from its first mask, and print how good the masks are."""
    launched()  # refuses invalid environment variables before any work
    check_output(output, overwrite)
    refuse_links(output / "result")
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
