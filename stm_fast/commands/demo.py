"""stm-fast demo: a clip that is drawn, and its segmentation."""

from pathlib import Path
from typing import Annotated

import typer

import stm_fast.tasks as tasks
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
    frames: Annotated[int, typer.Option(**whole(2, 10**6), help="The length of the clip.")] = 30,
    objects: Annotated[int, typer.Option(**whole(1, 6), help="How many objects it has.")] = 3,
    seed: Annotated[int, typer.Option(**whole(0, 2**32 - 1), help="Another seed draws another clip.")] = 0,
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw a clip of moving objects, segment it from its first mask and say how well that went."""
    launched()  # before work: what the environment says must make sense
    check_output(output, overwrite)
    refuse_links(output / "result")
    tasks.run_demo(
        output,
        frames=frames,
        objects=objects,
        seed=seed,
        network=network,
        backend=backend,
        overwrite=overwrite,
    )
