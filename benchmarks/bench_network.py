"""Times whole frames by stage, the engine beside the published loop in the same run, and writes the figures down.

python benchmarks/bench_network.py                     what README shows: about 20 minutes on two CPU cores
python benchmarks/bench_network.py 480p-T10-O1         one workload
"""

import sys
from pathlib import Path

import torch

from stm_fast.benchmarking.system_run import parse_workload, run_system
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
ROUNDS = {"cpu": 7, "cuda": 50}


def main(names: list[str]) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        workloads = [parse_workload(name) for name in names or WORKLOADS[device]]
        run_system(workloads, device, ROUNDS[device], peaks=True, output=RESULTS / f"network-{device}.json")
    except InputError as error:
        print(f"bench_network: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
