"""Compiles, without a GPU, what make gpu will launch: make gpu-cache. One archive, which make gpu unpacks.

The stages of make gpu run on the device of tests/launchless, which compiles for sm_90 and launches nothing; the tests
fail there, and the times mean nothing. Run it with the Python, the Triton and the PyTorch of the GPU's machine.

Triton finds a kernel by a hash of its source, its options and Triton itself, so that one that does not belong is never
launched. Its launchers, a little C for each signature of a kernel, are compiled on the GPU's machine.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from shutil import rmtree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = ROOT / "build" / "gpu-cache"
ARCHIVE = ROOT / "build" / "gpu-cache.tar.xz"

_MANIFEST = "manifest.json"
_GROUP = "__grp__"  # the file that lists the files of a kernel, with their paths
_PACKED = (".cubin", ".json")  # what launching a kernel needs, without its intermediate code


def main() -> int:
    from gpu_suite import UNCOMPARED

    start = time.monotonic()
    kernels = FOLDER / "triton"
    rmtree(FOLDER, ignore_errors=True)
    kernels.mkdir(parents=True)
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", HERE)))}
    environment = os.environ | paths | {"TRITON_CACHE_DIR": str(kernels), UNCOMPARED: "1"}
    checks = [str(HERE / "gpu_checks.py"), "--minutes", "60", "--compile-only"]
    command = [sys.executable, "-m", "launchless", "--compile", *checks, "--out", str(FOLDER / "results")]
    print(f"this takes a while; progress is in {FOLDER / 'results' / 'gpu-checks.log'}", flush=True)
    subprocess.run([*command, *sys.argv[1:]], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    count = pack(kernels, ARCHIVE)
    size = ARCHIVE.stat().st_size / 1e6
    print(f"{ARCHIVE}: {count} kernels, {size:.1f} MB, {time.monotonic() - start:.0f} s")
    return 0 if count else 1


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


def unpack(archive: Path, folder: Path) -> str:
    """Adds an archive to a Triton cache, if Triton and Python are those that made it. Returns a line about that."""
    if not archive.exists():
        return "there is no archive of kernels (make gpu-cache makes it): all are compiled now"
    with tarfile.open(archive) as packed:
        manifest = packed.extractfile(_MANIFEST)
        assert manifest is not None
        made_by, here = json.load(manifest), _made_by()
        for name in ("triton", "python", "machine"):
            if made_by[name] != here[name]:
                return f"the archive's {name} is {made_by[name]}, here it is {here[name]}: all are compiled now"
        names = packed.getnames()
        packed.extractall(folder, filter="data")
    for name in names:
        if PurePosixPath(name).name.startswith(_GROUP):
            _point_to_its_files(folder / name)
    (folder / _MANIFEST).unlink()
    same = made_by["sources"] == here["sources"]
    remark = "of these sources" if same else "of other sources: what has changed since is compiled now"
    return f"{sum(name.endswith('.cubin') for name in names)} kernels unpacked, {remark}"


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


if __name__ == "__main__":
    sys.exit(main())
