"""Compiles, without a GPU, what make gpu will launch: make gpu-cache. One archive, which make gpu unpacks.

The stages of make gpu run on the device of tests/launchless, which compiles for sm_90 and launches nothing; the tests
are red there, and the times mean nothing. Run it with the Python, the Triton and the PyTorch of the GPU's machine.

Triton finds a kernel by a hash of its source, its options and Triton itself, so that one that does not belong is never
launched. Its launchers, C that it compiles once for each signature of a kernel, are kept too with Triton 3.6; another
Triton compiles them where they are needed.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = ROOT / "build" / "gpu-cache"
ARCHIVE = ROOT / "build" / "gpu-cache.tar.xz"
STAGES = "smoke,tests,reads,profile,frames"
SOURCES = "STM_FAST_LAUNCHERS"  # in the environment: the folder for the sources of launchers

_MANIFEST = "manifest.json"
_GROUP = "__grp__"  # the file that lists the files of a kernel, with their paths
# the files that launching a kernel needs; its intermediate code is not packed
_PACKED = (".cubin", ".json", ".so")
_LAUNCHER = "__triton_launcher"


def main() -> int:
    from gpu.session import Child
    from gpu.suite import UNCOMPARED

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
        UNCOMPARED: "1",
    }
    command = [sys.executable, str(HERE / "gpu_checks.py"), "--only", STAGES, "--minutes", "60", "--compile-only"]
    log = FOLDER / "log"
    print(f"this takes a while; progress is in {log}", flush=True)
    Child([*command, "--out", str(FOLDER / "results"), *sys.argv[1:]], log, ROOT, os.environ).wait(start + 3600)
    launchers = compile_launchers(sources)
    count = pack(kernels, ARCHIVE)
    size = ARCHIVE.stat().st_size / 1e6
    print(f"{ARCHIVE}: {count} kernels, {launchers} launchers, {size:.1f} MB, {time.monotonic() - start:.0f} s")
    return 0 if count else 1


# kernels


class Unpacked(NamedTuple):
    """How many kernels an archive brought, or why none; a remark on those that it brought."""

    kernels: int
    remark: str


def pack(folder: Path, archive: Path) -> int:
    """Writes the archive of a Triton cache, and returns how many kernels are in it."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps(_made_by()))
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        packed.add(manifest, _MANIFEST)
        # files of a kind together: they are alike
        for path in sorted(folder.glob("*/*"), key=lambda path: (path.suffix, path.name, path.parent)):
            if path.suffix in _PACKED:
                packed.add(path, str(path.relative_to(folder)))
    return kernels_in(folder)


def unpack(archive: Path, folder: Path) -> Unpacked:
    """Adds an archive to a Triton cache, where Triton and Python are those that made it."""
    if not archive.exists():
        return Unpacked(0, "there is no archive of kernels (make gpu-cache makes it): all are compiled now")
    with tarfile.open(archive) as packed:
        manifest = packed.extractfile(_MANIFEST)
        assert manifest is not None
        made_by, here = json.load(manifest), _made_by()
        for name in ("triton", "python", "machine"):
            if made_by[name] != here[name]:
                return Unpacked(0, f"its {name} is {made_by[name]}, here it is {here[name]}: all are compiled now")
        names = packed.getnames()
        packed.extractall(folder, filter="data")
    for name in names:
        if PurePosixPath(name).name.startswith(_GROUP):
            _point_to_its_files(folder / name)
    (folder / _MANIFEST).unlink()
    same = made_by["sources"] == here["sources"]
    remark = "of these sources" if same else "of other sources: what has changed since is compiled now"
    return Unpacked(sum(name.endswith(".cubin") for name in names), remark)


def kernels_in(folder: Path) -> int:
    """How many compiled kernels a Triton cache has."""
    return sum(1 for _ in folder.glob("*/*.cubin"))


def _point_to_its_files(group: Path) -> None:
    """Triton stores the paths of a kernel's files on the machine that compiled it."""
    files = json.loads(group.read_text())["child_paths"]
    there = {name: str(group.parent / name) for name in files if (group.parent / name).exists()}
    group.write_text(json.dumps({"child_paths": there}))


def _made_by() -> dict[str, str]:
    sources = hashlib.sha256()
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        sources.update(path.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    machine = f"{platform.system()} {platform.machine()}"
    return {"triton": version("triton"), "python": python, "machine": machine, "sources": sources.hexdigest()}


# launchers


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


def compile_launchers(folder: Path) -> int:
    """Compiles what was kept into Triton's cache, and returns how many there are."""
    from triton.backends.nvidia import driver

    sources = {_LAUNCHER: [path.read_text() for path in sorted(folder.glob("*.c"))]}
    if sources[_LAUNCHER]:
        sources["cuda_utils"] = [Path(driver.dirname, "driver.c").read_text()]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        # an empty libcuda.so.1 to link against: only the name goes into the result
        command = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", f"{scratch}/libcuda.so.1", "-x", "c", "-"]
        subprocess.run(command, input=b"", check=True)
        jobs = [pool.submit(_compile, name, text, scratch) for name, texts in sources.items() for text in texts]
        for job in jobs:
            job.result()
    return len(jobs)


def _compile(name: str, source: str, libraries: str) -> None:
    from triton.backends.nvidia import driver
    from triton.runtime import build
    from triton.runtime.cache import get_cache_manager

    # as triton.runtime.build.compile_module_from_src does it, which also loads what it has compiled
    key = hashlib.sha256((source + build.platform_key()).encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.c")
        path.write_text(source)
        include, flags = driver.include_dirs, ["-Wl,--no-as-needed"]
        library = build._build(name, str(path), folder, [libraries], include, driver.libraries, flags)
        get_cache_manager(key).put(Path(library).read_bytes(), Path(library).name, binary=True)


if __name__ == "__main__":
    sys.exit(main())
