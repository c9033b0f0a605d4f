"""Compiled kernels that travel: packed on a machine without a GPU (make gpu-cache), unpacked by make gpu.

Triton finds a kernel by a hash of its source, its options and Triton itself, so that one that does not belong is never
launched; the archive is left alone where none of it could.
"""

import hashlib
import json
import platform
import tarfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gpu import ROOT

ARCHIVE = ROOT / "build" / "gpu-cache.tar.xz"
_MANIFEST = "manifest.json"
_GROUP = "__grp__"  # the file that lists the files of a kernel, with their paths
# what launching a kernel takes; the code on the way to it is not packed
_PACKED = (".cubin", ".json", ".so")


class Unpacked(NamedTuple):
    """How many kernels an archive brought, or why none; a remark on those that it brought."""

    kernels: int
    told: str


def pack(folder: Path, archive: Path) -> int:
    """Writes the archive of a Triton cache, and tells how many kernels are in it."""
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
        made_by, here = json.loads(_read(packed, _MANIFEST)), _made_by()
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
    told = "of these sources" if same else "of other sources: what has changed since is compiled now"
    return Unpacked(sum(name.endswith(".cubin") for name in names), told)


def _read(packed: tarfile.TarFile, name: str) -> bytes:
    file = packed.extractfile(name)
    assert file is not None
    return file.read()


def _point_to_its_files(group: Path) -> None:
    """Triton writes down where the files of a kernel are, on the machine that compiled it."""
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


def kernels_in(folder: Path) -> int:
    """How many compiled kernels a Triton cache has."""
    return sum(1 for _ in folder.glob("*/*.cubin"))
