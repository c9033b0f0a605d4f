"""Whole frames of the package's networks, plain, prepared and in bfloat16, with peak memory, in one run.

python benchmarks/networks.py                          480p, 1 and 3 objects: results/networks-cpu.json
python benchmarks/networks.py 480p-T10-O1 --rounds 3
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from stm_fast import STM, save_checkpoint, stm_lite0, stm_lite2, stm_resnet18, stm_resnet18_half
from stm_fast.benchmarking.frames import time_variants
from stm_fast.benchmarking.records import FrameRow, Record, describe_machine
from stm_fast.benchmarking.shapes import parse_workload
from stm_fast.benchmarking.tables import stage_table
from stm_fast.network.deploy.precision import has_bfloat16

RESULTS = Path(__file__).resolve().parent / "results"
LITE: dict[str, Callable[[], STM]] = {"stm_lite2": stm_lite2, "stm_lite0": stm_lite0}
RESNETS: dict[str, Callable[[], STM]] = {"stm_resnet18_half": stm_resnet18_half, "stm_resnet18": stm_resnet18}


def main(
    workloads: Annotated[list[str] | None, typer.Argument(metavar="480p-T10-O1")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    output: Path | None = None,
) -> None:
    """Times whole frames of several networks with random weights.

    Where a CPU has no instructions for bfloat16, PyTorch takes minutes for a ResNet's frame: there only networks on
    EfficientNet-Lite, whose bottlenecks are the package's own, run in it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = (output or RESULTS / f"networks-{device}.json").resolve()
    record = Record[FrameRow](describe_machine(device), {"rounds": rounds})
    reduced = has_bfloat16(torch.device(device))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # records name the weights without their folder
        for name, build in (LITE | RESNETS).items():
            torch.manual_seed(0)
            save_checkpoint(build(), f"{name}.safetensors")
            variants = ["engine", "prepared", *(["bfloat16"] if reduced or name in LITE else [])]
            for workload in workloads or ["480p-T10-O1", "480p-T10-O3"]:
                parsed = parse_workload(workload, f"{name}.safetensors")
                rows = time_variants(parsed, variants, rounds, device, peaks=True)
                record.rows += rows
                record.write(output)
                print("", *stage_table(rows).lines(), sep="\n", flush=True)
        os.chdir(before)


if __name__ == "__main__":
    typer.run(main)
