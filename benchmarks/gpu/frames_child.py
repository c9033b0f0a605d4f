"""Times whole frames: python -m gpu.frames_child RECORD [--tiny]. The record is written after every workload."""

import sys
from pathlib import Path

from stm_fast.benchmarking.machine import describe_machine
from stm_fast.benchmarking.system import PUBLISHED, measure_system
from stm_fast.benchmarking.system_records import SystemRecord, write_system_record
from stm_fast.benchmarking.system_workload import parse_workload

# what is asked first is timed first; the compiled ones take long until their first frame
RUNS = (
    ("480p-T20-O1", (PUBLISHED, "prepared", "bfloat16", "float16")),
    ("480p-T20-O3", (PUBLISHED, "prepared", "bfloat16", "float16")),
    ("480p-T20-O1", (PUBLISHED, "bfloat16", "bfloat16-graphs")),
)
_TINY = (("64p-T1-O1", (PUBLISHED, "prepared", "bfloat16")),)
_COMPILE_ONLY = (("480p-T20-O1", RUNS[0][1][1:]), ("480p-T20-O3", RUNS[1][1][1:]))
_ROUNDS = 15


def main() -> int:
    path, *options = sys.argv[1:]
    record = SystemRecord(describe_machine("cuda"))
    rounds = 1 if options else _ROUNDS
    for name, contestants in _TINY if "--tiny" in options else _COMPILE_ONLY if options else RUNS:
        print(f"{name}: {', '.join(contestants)}", flush=True)
        record.rows += measure_system(parse_workload(name), contestants, rounds, "cuda")
        write_system_record(record, Path(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
