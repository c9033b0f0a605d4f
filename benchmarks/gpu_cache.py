"""Compiles, without a GPU, what make gpu will launch: make gpu-cache. One archive, which make gpu unpacks.

The stages of make gpu run on the device of tests/launchless, which compiles for sm_90 and launches nothing; the tests
are red there, and the times mean nothing. Run it with the Python, the Triton and the PyTorch of the GPU's machine.
"""

import os
import sys
import time
from pathlib import Path
from shutil import rmtree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = ROOT / "build" / "gpu-cache"
STAGES = "smoke,tests,reads,profile,frames"


def main() -> int:
    from gpu.kernel_cache import ARCHIVE, pack
    from gpu.launchers import SOURCES, compile_sources
    from gpu.processes import Child

    start = time.monotonic()
    kernels, sources = FOLDER / "triton", FOLDER / "launchers"
    rmtree(FOLDER, ignore_errors=True)
    for folder in (kernels, sources):
        folder.mkdir(parents=True)
    paths = [HERE / "gpu" / "collecting", HERE, ROOT / "tests"]
    os.environ |= {
        "TRITON_CACHE_DIR": str(kernels),
        SOURCES: str(sources),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTEST_PLUGINS": "gpu.uncompared",
    }
    command = [sys.executable, str(HERE / "gpu_checks.py"), "--only", STAGES, "--minutes", "60", "--compile-only"]
    log = FOLDER / "log"
    print(f"this takes a while; what is going on: {log}", flush=True)
    Child([*command, "--out", str(FOLDER / "results"), *sys.argv[1:]], log, ROOT, os.environ).wait(start + 3600)
    launchers = compile_sources(sources)
    count = pack(kernels, ARCHIVE)
    size = ARCHIVE.stat().st_size / 1e6
    print(f"{ARCHIVE}: {count} kernels, {launchers} launchers, {size:.1f} MB, {time.monotonic() - start:.0f} s")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
