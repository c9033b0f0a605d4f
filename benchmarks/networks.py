"""Whole frames of the package's networks, plain, prepared and in bfloat16, with peak memory, in one run.

python benchmarks/networks.py                        480p, 1 and 3 objects: results/networks-cpu.json
python benchmarks/networks.py 480p-T10-O1 --rounds 3

Where a CPU has no instructions for bfloat16, PyTorch takes minutes for a ResNet's frame: there only networks on
EfficientNet-Lite, whose bottlenecks are the package's own, run in it.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from stm_fast import STM, save_checkpoint, stm_lite0, stm_lite2, stm_resnet18, stm_resnet18_half
from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.system import measure_system
from stm_fast.benchmarking.system_records import SystemRecord, write_system_record
from stm_fast.benchmarking.system_run import table
from stm_fast.benchmarking.system_workload import parse_workload
from stm_fast.network.deploy.precision import has_bfloat16

RESULTS = Path(__file__).resolve().parent / "results"
LITE: dict[str, Callable[[], STM]] = {"stm_lite2": stm_lite2, "stm_lite0": stm_lite0}
RESNETS: dict[str, Callable[[], STM]] = {"stm_resnet18_half": stm_resnet18_half, "stm_resnet18": stm_resnet18}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Times whole frames of several networks.")
    parser.add_argument("workloads", nargs="*", default=["480p-T10-O1", "480p-T10-O3"], metavar="480p-T10-O1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = (options.output or RESULTS / f"networks-{device}.json").resolve()
    record = SystemRecord(describe_machine(device))
    reduced = has_bfloat16(torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # records name the weights without where they lay
        for name, build in (LITE | RESNETS).items():
            torch.manual_seed(0)
            save_checkpoint(build(), f"{name}.safetensors")
            contestants = ["engine", "prepared", *(["bfloat16"] if reduced or name in LITE else [])]
            for workload in options.workloads:
                parsed = parse_workload(workload, f"{name}.safetensors")
                rows = measure_system(parsed, contestants, options.rounds, device, peaks=True)
                record.rows += rows
                write_system_record(record, output)
                print(table(rows, {}), flush=True)
        os.chdir(RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])
