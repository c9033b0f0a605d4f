"""Writes the memory read as a project of Hugging Face's kernel-builder.

python csrc/hub/make_kernel.py writes it into build/hub-kernel; docs/kernels-hub.md describes the rest of the way.

The sources stay where they are developed. This copies what the read needs and changes only what must differ on the hub:
imports become relative, and operators move into the namespace of one build, so that builds can be loaded side by side.
"""

import argparse
import ast
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "stm_fast"
NAME = "memory_read"
ENTRIES = ("stm_fast.ops", "stm_fast.testing")  # what the kernel offers; what these import comes along
OF_THE_NETWORK = ("bottleneck", "convolution", "probabilities", "winograd")  # in names of sources that no read needs
FLAGS = (
    *("-std=c++20", "-fvisibility=hidden", "-falign-functions=64", "-falign-loops=64", "-DTORCH_STABLE_ONLY"),
    "-DSTM_FAST_RELEASE",  # without the instruction sets that only tests use
)

# (what names the package, what a build of the kernel has in its place); <root> is the relative name of its top package
IN_PYTHON = (
    (r"^( *)from stm_fast\.", r"\1from <root>"),
    (r"^( *)import stm_fast\._C\b", r"\1from <root> import _C"),
    (r'(?:(?<=\()|(?<=[=,] ))(f?)"stm_fast::(\w[^"\n]*)"', r'add_op_namespace_prefix(\1"\2")'),
    (r"\btorch\.ops\.stm_fast\b", "ops"),
    (r'\bfiles\("stm_fast"\)', 'files(__spec__.parent.partition(".")[0])'),
)
IN_BINDINGS = (
    (r"#include <torch/csrc/stable/library\.h>", '#include <torch/csrc/stable/library.h>\n\n#include "registration.h"'),
    (r"\bSTABLE_TORCH_LIBRARY_IMPL\(stm_fast,", "STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME,"),
    (r"\bPyInit__C\(", "CONCAT(PyInit_, TORCH_EXTENSION_NAME)("),
    (r'\bPyModuleDef_HEAD_INIT, "_C"', "PyModuleDef_HEAD_INIT, STRINGIFY(TORCH_EXTENSION_NAME)"),
)
EXTENSION = '''"""The extension under the name that it has in the package; kernel-builder names it after the build."""

import sys

from . import _ops

sys.modules[__name__] = getattr(_ops, _ops.ops.name)
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build/hub-kernel", help="is replaced if this wrote it")
    output = parser.parse_args().output
    if output.exists() and not is_replaceable(output):
        print(f"make_kernel: {output}: found another folder, expected none or one that this wrote", file=sys.stderr)
        return 2
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hub-kernel-", dir=output.parent) as partial:
        project = Path(partial) / "project"
        write_project(project)
        shutil.rmtree(output, ignore_errors=True)
        project.rename(output)
    print(output)
    return 0


def is_project(folder: Path) -> bool:
    """Whether `write_project` wrote a folder."""
    return (folder / "torch-ext" / NAME / "__init__.py").is_file()


def is_replaceable(folder: Path) -> bool:
    """Whether it is a project of which nobody made a repository."""
    return is_project(folder) and not (folder / ".git").exists()


def write_project(project: Path) -> None:
    """Writes what kernel-builder builds: build.toml, flake.nix, the card, torch-ext/, csrc/ and tests/."""
    package = project / "torch-ext" / NAME
    for module, path in needed_modules().items():
        write(package / path.relative_to(PACKAGE if PACKAGE in path.parents else ROOT), translated(module, path))
    write(package / "__init__.py", _top_module())
    write(package / "_C.py", EXTENSION)
    for path in (ROOT / "csrc").rglob("*"):
        # headers of the network stay: the sources of instruction sets include them
        if path.suffix == ".h" or (path.suffix == ".cpp" and not any(name in path.name for name in OF_THE_NETWORK)):
            _copy_cpp(path, project)
    write(project / "build.toml", _configuration(project))
    for path in (HERE / "flake.nix", HERE / "CARD.md", HERE / "tests/test_memory_read.py", ROOT / "LICENSE"):
        write(project / path.relative_to(HERE if HERE in path.parents else ROOT), path.read_text())


def needed_modules() -> dict[str, Path]:
    """The modules that ENTRIES import, directly or not, by their names in the package."""
    found: dict[str, Path] = {}
    waiting = list(ENTRIES)
    while waiting:
        module = waiting.pop()
        path = _path_of(module)
        if path is None or module in found or module == "stm_fast":
            continue
        found[module] = path
        waiting += [module.rpartition(".")[0], *_imported(path)]
    return found


def _path_of(module: str) -> Path | None:
    """The source of a module of the package; None if the name is another's, such as that of a function in a module."""
    parts = module.split(".")
    base = ROOT.joinpath(*parts[1:] if parts[1:2] == ["kernels"] else parts)
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stm_fast."):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def translated(module: str, path: Path) -> str:
    """A module of the package as one of the kernel.

    Raises:
        ValueError: something in it still names the package.
    """
    root = "." * (module.count(".") + (path.name == "__init__.py"))
    text = path.read_text()
    for pattern, replacement in IN_PYTHON:
        text = re.sub(pattern, replacement.replace("<root>", root), text, flags=re.MULTILINE)
    used = [name for name in ("add_op_namespace_prefix", "ops") if re.search(rf"(?<![\w.]){name}[.(,]", text)]
    if used:
        text = text.replace("import torch\n", f"import torch\n\nfrom {root}_ops import {', '.join(used)}\n", 1)
    line = next(filter(None, map(_named_in, ast.walk(ast.parse(text)))), None)
    if line is not None:
        raise ValueError(f"{path}: found stm_fast in line {line} of its translation, expected a rule in IN_PYTHON")
    return text


def _named_in(node: ast.AST) -> int | None:
    """The line of a node that names the package as code does, and not as a docstring or a message does."""
    match node:
        case ast.Constant(value=str(text)) if re.fullmatch(r"stm_fast(::.*)?", text):
            return node.lineno
        case ast.ImportFrom(module=str(name)) if name.startswith("stm_fast"):
            return node.lineno
        case ast.Import(names=names) if any(alias.name.startswith("stm_fast") for alias in names):
            return node.lineno
        case ast.Attribute(attr="stm_fast"):
            return node.lineno
    return None


def _top_module() -> str:
    tree = ast.parse((PACKAGE / "ops/__init__.py").read_text())
    (public,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    listed = "".join(f'    "{name}",\n' for name in (*public, "testing"))
    return (
        '"""The memory read of space-time memory networks: one operator, several backends."""\n\n'
        f"from . import testing\nfrom .ops import {', '.join(public)}\n\n__all__ = [\n{listed}]\n"
    )


def _copy_cpp(path: Path, project: Path) -> None:
    """Copies a file of the engine, which knows no PyTorch, into csrc/, and one of the bindings into torch-ext/."""
    if path.parent != ROOT / "csrc":
        if HERE not in path.parents:
            write(project / path.relative_to(ROOT), path.read_text())
        return
    text = path.read_text()
    for pattern, replacement in IN_BINDINGS:
        text = re.sub(pattern, replacement, text)
    write(project / "torch-ext" / path.name, text)


def _configuration(project: Path) -> str:
    """build.toml, which lists every source and header of a build."""
    text = (HERE / "build.toml").read_text().replace('"@FLAGS@"', json.dumps(FLAGS)[1:-1])
    for mark, folder in (("BINDINGS", "torch-ext"), ("ENGINE", "csrc")):
        files = sorted(path for path in (project / folder).rglob("*") if path.suffix in (".h", ".cpp"))
        listed = "".join(f'  "{path.relative_to(project).as_posix()}",\n' for path in files)
        text = text.replace(f'"@{mark}@"', f"\n{listed}")
    return text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
