"""Times whole frames by stage, the engine beside the published loop in the same run, and writes the figures down.

python benchmarks/bench_network.py                     what README shows
python benchmarks/bench_network.py 480p-T10-O1         one workload
python benchmarks/bench_network.py --only-peaks        prints peak memory, times and writes nothing
python benchmarks/bench_network.py --weights FILE      with a trained network: then J of the masks means something
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch

from stm_fast.benchmarking.system import peak_bytes
from stm_fast.benchmarking.system_run import run_system, usual_contestants
from stm_fast.benchmarking.system_workload import parse_workload
from stm_fast.errors import InputError

RESULTS = Path(__file__).resolve().parent / "results"
WORKLOADS = {
    "cpu": ["480p-T10-O1", "480p-T10-O3", "480p-T50-O1", "480p-T50-O3"],
    "cuda": [
        "480p-T10-O1",
        "480p-T10-O3",
        "480p-T10-O10",
        "480p-T50-O1",
        "480p-T50-O3",
        "1080p-T10-O1",
        "1080p-T10-O10",
    ],
}
ROUNDS = {"cpu": 3, "cuda": 50}


def main(arguments: list[str]) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description="Times whole frames by stage.")
    parser.add_argument("workloads", nargs="*", default=WORKLOADS[device], metavar="480p-T10-O1")
    parser.add_argument("--rounds", type=int, default=ROUNDS[device])
    parser.add_argument("--weights")
    parser.add_argument("--only-peaks", action="store_true")
    options = parser.parse_args(arguments)
    try:
        workloads = [parse_workload(name, options.weights) for name in options.workloads]
        if options.only_peaks:
            for workload, contestant in itertools.product(workloads, usual_contestants(device)):
                peak = peak_bytes(contestant, workload, device) / 2**20
                print(f"{workload.name}, {contestant}: {peak:.0f} MiB beyond the loaded network", flush=True)
            return 0
        output = RESULTS / f"network-{device}.json"
        run_system(workloads, usual_contestants(device), device, options.rounds, peaks=True, output=output)
    except InputError as error:
        print(f"bench_network: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
