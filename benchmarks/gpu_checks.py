"""Every check that needs a GPU, in one call of under 8 minutes: make gpu.

The tests marked gpu, then times of the memory read beside its peers, written to benchmarks/results/<gpu>.json with
versions and commit. The last line on stdout is that JSON. Exits 3 where there is no GPU, 1 where a check fails.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TEST_SECONDS = 300
TIMING_SECONDS = 120


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu checks: no CUDA device on this machine", file=sys.stderr)
        return 3
    tests_pass = run_tests()
    record = describe() | {
        "tests": "passed" if tests_pass else "failed",
        "forward": time_forward() if tests_pass else [],
    }
    path = HERE / "results" / f"{str(record['gpu']).replace(' ', '_')}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
    print(json.dumps(record))
    return 0 if tests_pass else 1


def run_tests() -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    # safe path: the folder of the checkout must not shadow an installed wheel
    environment = os.environ | {"STM_FAST_REQUIRE": "triton", "PYTHONSAFEPATH": "1"}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=TEST_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"gpu checks: the tests took more than {TEST_SECONDS} s", file=sys.stderr)
        return False


def describe() -> dict[str, object]:
    import triton

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def time_forward() -> list[dict[str, object]]:
    """Median and 20 % and 80 % quantiles in microseconds, every route of a shape in turn; a failure is a result."""
    from triton.testing import do_bench

    from routes import GPU_ROUTES, make_inputs
    from shapes import GPU_SHAPES

    rows: list[dict[str, object]] = []
    start = time.monotonic()
    for shape in GPU_SHAPES:
        inputs = make_inputs(shape, torch.bfloat16, "cuda")
        for name, route in GPU_ROUTES.items():
            row: dict[str, object] = {"shape": str(shape), "dtype": "bfloat16", "route": name}
            if time.monotonic() - start > TIMING_SECONDS:
                rows.append(row | {"refused": "out of time"})
                continue
            try:
                with torch.inference_mode():
                    median, low, high = do_bench(lambda: route(*inputs), quantiles=[0.5, 0.2, 0.8])  # noqa: B023
            except (RuntimeError, NotImplementedError) as error:
                rows.append(row | {"refused": str(error).splitlines()[0]})
                continue
            rate = shape.flop / median / 1e9
            rows.append(row | {"us": 1e3 * median, "us_20": 1e3 * low, "us_80": 1e3 * high, "tflop_per_second": rate})
    return rows


if __name__ == "__main__":
    sys.exit(main())
