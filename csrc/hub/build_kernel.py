"""Builds build/hub-kernel, which make_kernel.py wrote, for the torch of this machine: python csrc/hub/build_kernel.py

kernel-builder makes all variants, reproducibly, in environments of Nix. This makes one with the compiler at hand, in
the same layout, which `kernels.get_local_kernel` loads: for development and tests, not for the hub.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import platform
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import torch
from make_kernel import FLAGS, HERE, NAME, ROOT, is_project, write
from setuptools import setup

OPERATORS = """import torch

from . import {name}

ops = torch.ops.{name}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{name}::{{op_name}}"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, nargs="?", default=ROOT / "build/hub-kernel")
    parser.add_argument("--backend", choices=("cpu", "cuda"), help="by default the one that the torch installed is for")
    parser.add_argument("--optimize", default="-O3", help="a compiler flag; -O0 takes half of the time to compile")
    given = parser.parse_args()
    if not is_project(given.project):
        print(f"build_kernel: {given.project}: expected a folder that make_kernel.py wrote", file=sys.stderr)
        return 2
    if given.backend == "cuda" and torch.version.cuda is None:
        print(f"build_kernel: --backend cuda: expected a torch with CUDA, found {torch.__version__}", file=sys.stderr)
        return 2
    print(build_variant(given.project.resolve(), given.backend, given.optimize))
    return 0


def build_variant(project: Path, backend: str | None, optimize: str) -> Path:
    """Compiles the project and returns its new folder build/<variant>."""
    backend = backend or ("cpu" if torch.version.cuda is None else "cuda")
    build = tomllib.loads((project / "build.toml").read_text())
    name = f"_{NAME}_{backend}_{_digest(project / 'torch-ext', project / 'csrc').hex()[:7]}"
    final = project / "build" / variant_name(backend, build["torch"]["stable-abi"][backend], torch.version.cuda)
    with tempfile.TemporaryDirectory(prefix=".variant-", dir=project) as partial:
        variant = Path(partial) / "variant"
        shutil.copytree(project / "torch-ext" / NAME, variant)
        shutil.copy(_compiled(project, name, build, optimize, Path(partial)), variant)
        write(variant / "_ops.py", OPERATORS.format(name=name))
        write(variant / "metadata.json", json.dumps(_metadata(variant, name, build, backend), indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(exist_ok=True)
        variant.rename(final)
    return final


def variant_name(backend: str, stable_abi: str, cuda: str | None) -> str:
    """The name of a build's folder, by which `kernels` decides whether it fits a machine."""
    tag = "cpu" if backend == "cpu" else f"cu{cuda}"
    return f"torch-stable-abi{stable_abi}-{tag}-{platform.machine()}-{platform.system().lower()}".replace(".", "")


def _compiled(project: Path, name: str, build: dict[str, Any], optimize: str, folder: Path) -> Path:
    from torch.utils.cpp_extension import BuildExtension, CppExtension  # which warns where there is no GPU

    write(folder / "include/registration.h", (HERE / "registration.h").read_text())
    listed = [*build["torch"]["src"], *build["kernel"]["memory_read_cpu"]["src"]]
    major, minor = map(int, build["torch"]["stable-abi"]["cpu"].split("."))
    target = f"-DTORCH_TARGET_VERSION=0x{major << 56 | minor << 48:x}"
    extension = CppExtension(
        name,
        [str(project / path) for path in listed if path.endswith(".cpp")],
        include_dirs=[str(project / "csrc/include"), str(folder / "include")],
        extra_compile_args=[*FLAGS, optimize, "-g0", "-fno-gnu-unique", target],
        py_limited_api=True,
    )
    with contextlib.chdir(folder):  # elsewhere setuptools would read the package's pyproject.toml
        setup(
            name=name,
            packages=[],
            ext_modules=[extension],
            cmdclass={"build_ext": BuildExtension},
            script_args=["--quiet", "build_ext", "--build-lib=library", "--build-temp=objects"],
        )
    (library,) = (folder / "library").glob("*.so")
    return library


def _metadata(variant: Path, name: str, build: dict[str, Any], backend: str) -> dict[str, Any]:
    files = {path.relative_to(variant).as_posix(): path for path in sorted(variant.rglob("*")) if path.is_file()}
    digests = {file: base64.b64encode(_digest(path)).decode() for file, path in files.items()}
    capabilities = {"archs": build["kernel"]["memory_read_cuda"]["cuda-capabilities"]} if backend == "cuda" else {}
    return {
        **{key: build["general"][key] for key in ("name", "version", "license")},
        "id": name,
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend, **capabilities},
        "digest": {"algorithm": "sha256", "files": digests},
    }


def _digest(*places: Path) -> bytes:
    """SHA-256 of a file, or of all files in folders."""
    whole = hashlib.sha256()
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            whole.update(path.read_bytes() if path.is_file() else b"")
    return whole.digest()


if __name__ == "__main__":
    sys.exit(main())
