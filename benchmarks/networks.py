"""Whole frames of the package's networks, plain, prepared and in bfloat16, with peak memory, in one run.

python benchmarks/networks.py                        480p, 1 and 3 objects: results/networks-cpu.json
python benchmarks/networks.py 480p-T10-O1 --rounds 3
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from stm_fast import STM, save_checkpoint, stm_lite0, stm_lite2, stm_resnet18, stm_resnet18_half
from stm_fast.benchmarking.system_run import run_system
from stm_fast.benchmarking.system_workload import parse_workload

RESULTS = Path(__file__).resolve().parent / "results"
CONTESTANTS = ("engine", "prepared", "bfloat16")
NETWORKS: dict[str, Callable[[], STM]] = {
    "stm_lite2": stm_lite2,
    "stm_lite0": stm_lite0,
    "stm_resnet18_half": stm_resnet18_half,
    "stm_resnet18": stm_resnet18,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Times whole frames of several networks.")
    parser.add_argument("workloads", nargs="*", default=["480p-T10-O1", "480p-T10-O3"], metavar="480p-T10-O1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = (options.output or RESULTS / f"networks-{device}.json").resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # records name the weights without where they lay
        for name, build in NETWORKS.items():
            torch.manual_seed(0)
            save_checkpoint(build(), f"{name}.safetensors")
        workloads = [
            parse_workload(workload, f"{name}.safetensors") for workload in options.workloads for name in NETWORKS
        ]
        run_system(workloads, CONTESTANTS, device, options.rounds, peaks=True, output=output)
        os.chdir(RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])
