"""Builds stm_fast: the Python package, the Triton kernels (stm_fast.kernels) and the extension stm_fast._C.

The extension uses only PyTorch's stable ABI and Python's limited API, so one abi3 wheel serves every torch >= 2.11 and
every Python >= 3.11. Without a working compiler the package is still installed: the reason for the missing extension is
written into the package, and `stm-fast info` prints it. PyTorch is imported only where the extension is compiled.

STM_FAST_EXTENSION=1   a build without the extension fails (CI, release wheels)
STM_FAST_EXTENSION=0   the extension is not built
STM_FAST_RELEASE=1     the extension is built for an index: for glibc 2.28, stripped, without instruction sets for tests
STM_FAST_SANITIZE=1    the extension is built with sanitizers (.ci/sanitize)
"""

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

WANTED = os.getenv("STM_FAST_EXTENSION", "auto")
RELEASE = os.getenv("STM_FAST_RELEASE") == "1"
SANITIZERS = ["-fsanitize=address,undefined"] if os.getenv("STM_FAST_SANITIZE") == "1" else []
FLAGS = ("CXX", "CPPFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS")  # setuptools gives them to the compiler
REASON_FILE = "_C_absent.txt"  # read by stm_fast/ops/cpp_ops.py
TARGETS = r'(?<=\]\()[^)\s]+|(?<=src=")[^"]+|(?<=srcset=")[^"]+|(?<=href=")[^"]+'  # of links, in Markdown and HTML


def long_description() -> str:
    """README.md for the page of an index: links to files of the repository are absolute, and of this version."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]

    def absolute(target: re.Match[str]) -> str:
        path = target[0].partition("#")[0]
        if not path or not Path(path).exists():
            return target[0]
        picture = Path(path).suffix in (".gif", ".jpg", ".png", ".svg", ".webp", ".mp4")
        return f"{project['urls']['Source']}/{'raw' if picture else 'blob'}/v{project['version']}/{target[0]}"

    return re.sub(TARGETS, absolute, Path("README.md").read_text())


def compiler() -> str:
    """The name and version of the compiler. PyTorch's message for a missing one does not say what to do."""
    command = os.environ.get("CXX", "c++").split()
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"no C++ compiler: {command[0]} was not found; install g++, or set CXX")
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout


def kept_extension() -> Path:
    """Where the extension is kept, which is the same for all versions of PyTorch and Python."""
    flags = [os.getenv(name) for name in FLAGS]
    digest = hashlib.sha256(repr((EXTENSION, flags, compiler(), sysconfig.get_platform())).encode())
    for path in (*EXTENSION["sources"], *EXTENSION["depends"], "csrc/exports.map"):
        digest.update(path.encode() + b"\0" + Path(path).read_bytes())
    return Path("build", f"extension-{digest.hexdigest()[:16]}.so")


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file next to the one that it replaces, which a running process may have loaded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    shutil.copy(source, partial)
    partial.replace(target)


class BuildOrExplain(build_ext):
    """Builds the extension; if that fails and it is not required, writes the reason into the package instead."""

    def run(self) -> None:
        package = Path("stm_fast" if self.inplace else Path(self.build_lib) / "stm_fast")
        reason_file = package / REASON_FILE
        reason_file.unlink(missing_ok=True)
        try:
            if WANTED == "0":
                raise RuntimeError("it was switched off at build time (STM_FAST_EXTENSION=0)")
            self._build_once(kept_extension())
        except Exception as error:
            if WANTED == "1":
                raise
            package.mkdir(parents=True, exist_ok=True)
            # an extension built from older sources would be used instead
            Path(self.get_ext_fullpath("stm_fast._C")).unlink(missing_ok=True)
            reason_file.write_text(f"not built: {str(error).strip().splitlines()[0]}\n")
            print(f"stm_fast: continuing without the C++ extension: {error}")
            self.extensions = []

    def _build_once(self, kept: Path) -> None:
        """The next installation, which may be with another PyTorch or in pip's new environment, compiles nothing."""
        extension = Path(self.get_ext_fullpath("stm_fast._C"))
        if kept.exists() and not self.force:
            copy_whole(kept, extension)
            return
        self._build_with_torch()
        for older in kept.parent.glob("extension-*.so"):
            older.unlink()
        copy_whole(extension, kept)

    def _build_with_torch(self) -> None:
        """Runs PyTorch's build_ext, with the options of this one."""
        from torch.utils.cpp_extension import BuildExtension, CppExtension

        self.distribution.ext_modules = [CppExtension(**EXTENSION)]
        command = BuildExtension(self.distribution)
        for name in ("inplace", "build_lib", "build_temp", "force", "parallel"):
            setattr(command, name, getattr(self, name))
        command.ensure_finalized()
        command.run()

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


EXTENSION = {
    "name": "stm_fast._C",
    "sources": sorted(str(path) for path in Path("csrc").glob("**/*.cpp")),
    "include_dirs": [str(Path("csrc/include").resolve())],
    "depends": sorted(str(path) for path in Path("csrc").glob("**/*.h")),
    "extra_compile_args": [
        *(["-O1", "-g", "-fno-sanitize-recover=all", *SANITIZERS] if SANITIZERS else ["-O3", "-g0"]),
        "-std=c++20",  # up to 2.13 PyTorch's default was C++17
        "-fvisibility=hidden",
        # the inner loops fit two instruction cache lines; spread over three, they run 6 to 10 % slower on Zen 3
        "-falign-functions=64",
        "-falign-loops=64",
        "-DPy_LIMITED_API=0x030b0000",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        "-DTORCH_STABLE_ONLY",
        *(["-ffunction-sections", "-DSTM_FAST_RELEASE", f"-include{Path('csrc/manylinux.h').resolve()}"] * RELEASE),
    ],
    "extra_link_args": [*SANITIZERS, *(["-Wl,--gc-sections,--strip-all,--version-script=csrc/exports.map"] * RELEASE)],
    "py_limited_api": True,
}

setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["stm_fast", "stm_fast.*"]), "stm_fast.kernels", "stm_fast.kernels.experimental"],
    package_dir={"stm_fast": "stm_fast", "stm_fast.kernels": "kernels"},
    package_data={
        "stm_fast": [
            *("py.typed", REASON_FILE, "evaluation/*.html", "evaluation/*.svg", "page/static/*"),
            *("configs/*", "weights/*", "weights/recipe/*"),
        ]
    },
    ext_modules=[Extension(**EXTENSION)],
    cmdclass={"build_ext": BuildOrExplain},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
