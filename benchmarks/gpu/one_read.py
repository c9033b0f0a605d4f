"""One forward read, for a profiler: python -m gpu.one_read ROUTE [--tiny]."""

import sys

import torch

from gpu.contestants import contestants
from stm_fast.benchmarking import ROUTES, Workload, parse_shape
from stm_fast.benchmarking.inputs import in_layout, make_inputs
from stm_fast.benchmarking.timing import make_call


def main() -> int:
    name, *options = sys.argv[1:]
    ROUTES.update(contestants())
    shape = parse_shape("2x3-T1-O2" if "--tiny" in options else "480p-T20-O3")
    route = ROUTES[name]
    read = route.build(Workload(shape, torch.bfloat16, "forward", "cuda"))
    assert not isinstance(read, str)
    call = make_call("forward", read)
    call.timed(in_layout(make_inputs(shape, torch.bfloat16, "cuda", seed=0), route.layout))
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
