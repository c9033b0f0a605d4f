"""Times whole frames by stage, the engine beside the published loop in the same run.

python benchmarks/bench_network.py --size 480p --objects 1 --objects 3 --memory 10 --memory 50
"""

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer

from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.system import (
    ENGINES,
    PUBLISHED,
    SystemRow,
    SystemWorkload,
    beside_seconds,
    measure_system,
)
from stm_fast.inference.stages import STAGES
from stm_fast.video.whole_file import whole_file


def main(
    size: Annotated[list[str], typer.Option(help="240p, 480p or 1080p.")] = ["480p"],  # noqa: B006
    objects: Annotated[list[int], typer.Option(help="How many.")] = [1, 3],  # noqa: B006
    memory: Annotated[list[int], typer.Option(help="Memory frames.")] = [10],  # noqa: B006
    engine: Annotated[list[str], typer.Option(help=", ".join(ENGINES))] = ["engine", "engine, prepared"],  # noqa: B006
    backbone: str = "resnet50",
    rounds: int = 5,
    peaks: Annotated[bool, typer.Option("--peaks", help="Peak memory too, each in a process of its own.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """Prints milliseconds of a frame by stage, medians of frames taken in turns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, beside = [], {}
    for setting in product(size, objects, memory):
        workload = SystemWorkload(*setting, backbone)
        beside[str(workload)] = beside_seconds(workload)
        found = measure_system(workload, [PUBLISHED, *engine], rounds, device, peaks=peaks)
        print_table(found, beside[str(workload)])
        rows += found
    if json_file is not None:
        record = {
            "machine": describe_machine(device),
            "rows": [asdict(row) for row in rows],
            "beside_seconds": beside,
        }
        with whole_file(json_file) as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")


def print_table(rows: list[SystemRow], beside: dict[str, float]) -> None:
    """Stages down, contestants across, in milliseconds."""
    print(f"\n{rows[0].workload}, {rows[0].rounds} rounds")
    print(f"{'ms':16}" + "".join(f"{row.contestant:>20}" for row in rows))
    for stage in STAGES:
        print(f"{stage:16}" + "".join(f"{1000 * row.stage_seconds[stage]:20.1f}" for row in rows))
    print(f"{'frame':16}" + "".join(f"{1000 * row.frame_seconds:20.1f}" for row in rows))
    print(f"{'x published':16}" + "".join(f"{rows[0].frame_seconds / row.frame_seconds:20.2f}" for row in rows))
    print(f"{'same labels':16}" + "".join(f"{row.agreement:20.5f}" for row in rows))
    if rows[0].peak_bytes is not None:
        print(f"{'peak MiB':16}" + "".join(f"{(row.peak_bytes or 0) / 2**20:20.0f}" for row in rows))
    print(f"beside: decode {1000 * beside['decode']:.1f} ms, write {1000 * beside['write']:.1f} ms")


if __name__ == "__main__":
    typer.run(main)
