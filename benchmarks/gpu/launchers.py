"""Triton's launchers, C that it compiles once for each signature of a kernel: kept and compiled where no GPU is.

Of Triton 3.6; where it has another way, none are kept and they are compiled where they are needed.
"""

import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

SOURCES = "STM_FAST_LAUNCHERS"  # in the environment: the folder for sources
_NAME = "__triton_launcher"


def keep_sources() -> None:
    """From now on writes the source of the launcher of every kernel that Triton compiles or finds in its cache."""
    from triton import knobs

    knobs.compilation.listener = _keep


def _keep(*, src: Any, metadata: dict[str, Any], **_rest: Any) -> None:
    from triton.backends.nvidia import driver

    with suppress(AttributeError):
        source = driver.make_launcher(src.constants, dict(src.signature), metadata.get("tensordesc_meta"))
        path = Path(os.environ[SOURCES], f"{hashlib.sha256(source.encode()).hexdigest()}.c")
        if not path.exists():
            path.write_text(source)


def compile_sources(folder: Path) -> int:
    """Compiles what was kept into Triton's cache, and tells how many there are."""
    from triton.backends.nvidia import driver

    sources = {_NAME: [path.read_text() for path in sorted(folder.glob("*.c"))]}
    if sources[_NAME]:
        sources["cuda_utils"] = [Path(driver.dirname, "driver.c").read_text()]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        _make_driver_library(Path(scratch))
        jobs = [pool.submit(_compile, name, text, scratch) for name, texts in sources.items() for text in texts]
        for job in jobs:
            job.result()
    return len(jobs)


def _make_driver_library(folder: Path) -> None:
    """An empty libcuda.so.1 to link against: the name is all that goes into the result."""
    command = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), "-x", "c", "-"]
    subprocess.run(command, input=b"", check=True)


def _compile(name: str, source: str, libraries: str) -> None:
    from triton.backends.nvidia import driver
    from triton.runtime import build
    from triton.runtime.cache import get_cache_manager

    # as triton.runtime.build.compile_module_from_src does it, which loads what it has compiled
    key = hashlib.sha256((source + build.platform_key()).encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.c")
        path.write_text(source)
        include, flags = driver.include_dirs, ["-Wl,--no-as-needed"]
        library = build._build(name, str(path), folder, [libraries], include, driver.libraries, flags)
        get_cache_manager(key).put(Path(library).read_bytes(), Path(library).name, binary=True)
