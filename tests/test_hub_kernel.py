"""csrc/hub: the memory read as a kernel of the Hugging Face hub, written, compiled and loaded without the package."""

import ast
import base64
import hashlib
import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from stm_fast.kernels.targets import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
HUB = ROOT / "csrc/hub"
# the commands of docs/kernels-hub.md
WRITE = "python csrc/hub/make_kernel.py --output build/hub-kernel"
BUILD = "python csrc/hub/build_kernel.py build/hub-kernel"
# https://huggingface.co/docs/kernels/kernel-requirements; Triton comes with torch, and pydantic validates only files of
# settings, which the kernel does not have
MAY_BE_IMPORTED = {*sys.stdlib_module_names, "torch", "triton", "pydantic"}

# loads a build as `kernels` 0.17 does (importer.py), where the package cannot be imported, and compares it with float64
LOAD = """
import importlib.util, json, sys
from dataclasses import replace
from pathlib import Path

sys.modules["stm_fast"] = None
folder = Path(sys.argv[1])
name = json.loads((folder / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
kernel = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)

import torch
from torch.library import opcheck

Case = kernel.testing.ReadCase
l2 = Case(similarity="l2", shrinkage=True, selection=True, lengths=(97, 40))
for case in (Case(), l2, Case(top_k=5, return_usage=True)):
    for dtype in (torch.float32, torch.bfloat16):
        kernel.testing.check_case(case, dtype, "cpp")
query, key, value = kernel.testing.make_tensors(replace(Case(), rows=13), torch.float32)[:3]
arguments = (query, key, value, None, None, None, 0.25, 0, True, 0, False, False)
opcheck(getattr(torch.ops, name).memory_read_cpp.default, arguments)
assert not hasattr(torch.ops.stm_fast, "memory_read_cpp")

del sys.modules["stm_fast"]  # beside another build of the same operators
import stm_fast
from stm_fast.ops.cpp_ops import absent_reasons

if not absent_reasons():
    expected = stm_fast.memory_read(query, key, value, backend="cpp")
    torch.testing.assert_close(kernel.memory_read(query, key, value, backend="cpp"), expected)
print(*kernel.__all__)
"""


def run(command, project, *options):
    """Runs one of the commands with another folder for the project, and with more options."""
    words = [str(project) if word == "build/hub-kernel" else word for word in command.split()[1:]]
    return subprocess.run([sys.executable, *words, *options], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "kernel"
    done = run(WRITE, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}\n"
    return folder


@pytest.fixture
def make_kernel(monkeypatch):
    monkeypatch.syspath_prepend(HUB)
    import make_kernel

    return make_kernel


def modules(project):
    return sorted((project / "torch-ext/memory_read").rglob("*.py"))


def test_the_kernel_imports_itself_by_relative_names_and_nothing_else_but_torch(project):
    assert len(modules(project)) > 40
    for path in modules(project):
        for node in ast.walk(ast.parse(path.read_text())):
            absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                absolute = [node.module]
            assert {name.split(".")[0] for name in absolute} <= MAY_BE_IMPORTED, f"{path}: imports {absolute}"


def test_relative_imports_end_in_the_kernel(project):
    package = project / "torch-ext/memory_read"
    for path in modules(project):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and node.module != "_ops":
                target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                assert target == package or package in target.parents
                assert target.is_dir() or target.with_suffix(".py").is_file(), f"{path}: imports {target}"


def test_operators_are_registered_in_the_namespace_of_the_build(project):
    registered = 0
    for path in modules(project):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.library."):
                assert "::" not in ast.unparse(node.args[0]), f"{path}: line {node.lineno} names a namespace"
                registered += 1
    assert registered >= 15
    for path in (project / "torch-ext").glob("*bindings.cpp"):
        assert "(stm_fast," not in path.read_text()
        assert "STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, m)" in path.read_text()
    assert "CONCAT(PyInit_, TORCH_EXTENSION_NAME)(void)" in (project / "torch-ext/bindings.cpp").read_text()


def test_build_toml_lists_every_source_for_both_backends(project):
    build = tomllib.loads((project / "build.toml").read_text())
    assert build["general"]["name"].replace("-", "_") == "memory_read"
    assert set(build["general"]["backends"]) == set(build["torch"]["stable-abi"]) == {"cpu", "cuda"}
    engine = build["kernel"]["memory_read_cpu"]
    assert engine["src"] == build["kernel"]["memory_read_cuda"]["src"]
    listed = {*build["torch"]["src"], *engine["src"]}
    assert listed == {
        path.relative_to(project).as_posix() for path in project.rglob("*") if path.suffix in (".h", ".cpp")
    }
    assert {"torch-ext/bindings.cpp", "csrc/cpu/forward.cpp", "csrc/include/stm_fast/memory_read.h"} <= listed
    capabilities = build["kernel"]["memory_read_cuda"]["cuda-capabilities"]
    assert [round(10 * float(capability)) for capability in capabilities] == list(ARCHITECTURES)


def test_build_toml_has_the_flags_and_the_oldest_torch_of_the_package(project, make_kernel):
    build = tomllib.loads((project / "build.toml").read_text())
    setup = (ROOT / "setup.py").read_text()
    for section in (build["torch"], *build["kernel"].values()):
        assert tuple(section["cxx-flags"]) == make_kernel.FLAGS
    for flag in make_kernel.FLAGS:
        assert f'"{flag}"' in setup, f"setup.py compiles without {flag}"
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for version in build["torch"]["stable-abi"].values():
        assert f"torch>={version}" in requirements


@pytest.mark.parametrize(
    "line",
    [
        "import stm_fast.errors",
        "name = ['stm_fast::memory_read_cpp']",
        "operators = torch.ops; operators.stm_fast.memory_read_cpp()",
        "files(package='stm_fast')",
    ],
)
def test_a_module_that_would_still_name_the_package_is_refused(line, make_kernel, tmp_path):
    (tmp_path / "new.py").write_text(
        f'"""stm_fast::memory_read in a docstring is a word."""\n\nimport torch\n\n{line}\n'
    )
    with pytest.raises(ValueError, match=r"new\.py: found stm_fast in line \d+ of its translation"):
        make_kernel.translated("stm_fast.ops.new", tmp_path / "new.py")


def test_the_commands_are_documented():
    assert f"```sh\n{WRITE}\n{BUILD}\n```" in (ROOT / "docs/kernels-hub.md").read_text()


def test_a_build_for_cuda_needs_a_torch_with_cuda(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(HUB)
    monkeypatch.setattr(torch.version, "cuda", None)
    package = tmp_path / "torch-ext/memory_read"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "argv", ["build_kernel", str(tmp_path), "--backend", "cuda"])
    assert importlib.import_module("build_kernel").main() == 2
    assert capsys.readouterr().err.startswith("build_kernel: --backend cuda: expected a torch with CUDA, found ")


def test_another_folder_is_not_replaced(tmp_path):
    (tmp_path / "build.toml").touch()
    done = run(WRITE, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"make_kernel: {tmp_path}: found another folder")
    done = run(BUILD, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"build_kernel: {tmp_path}: expected a folder that make_kernel.py wrote")
    assert [*tmp_path.iterdir()] == [tmp_path / "build.toml"]


@pytest.mark.slow
def test_a_build_is_loaded_without_the_package_and_agrees_with_float64(project, tmp_path):
    done = run(BUILD, project, "--backend", "cpu", "--optimize=-O0")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.parent == project / "build"
    assert folder.name.startswith("torch-stable-abi211-cpu-")
    metadata = json.loads((folder / "metadata.json").read_text())
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files.pop("metadata.json")
    found = {name: base64.b64encode(hashlib.sha256(path.read_bytes()).digest()) for name, path in files.items()}
    assert metadata["digest"]["files"] == {name: digest.decode() for name, digest in found.items()}
    assert f"{metadata['id']}.abi3.so" in files
    (tmp_path / "load.py").write_text(LOAD)
    done = run(f"python {tmp_path / 'load.py'}", project, str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "testing"
