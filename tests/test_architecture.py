"""Imports go only to lower floors, and kernels import nothing from the rest of the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "kernels": 0,
    "_C": 0,
    "arguments": 0,
    "choices": 0,
    "csv_file": 0,
    "errors": 0,
    "heap": 0,
    "lazy": 0,
    "printing": 0,
    "system": 0,
    "torch_private": 0,
    "versions": 0,
    "cluster": 1,
    "config": 1,
    "listing": 1,
    "ops": 1,
    "store": 1,
    "text_file": 1,
    "whole_file": 1,
    "boxes": 2,
    "frame_source": 2,
    "record_file": 2,
    "tensor_file": 2,
    "testing": 2,
    "network": 3,
    "memory": 3,
    "video": 3,
    "clicks": 4,
    "inference": 4,
    "data": 4,
    "export": 5,
    "runs": 5,
    "evaluation": 6,
    "progress": 6,
    "sam2": 6,
    "benchmarking": 7,
    "page": 7,
    "training": 7,
    "tasks": 8,
    "__init__": 8,
    "commands": 9,
    "__main__": 10,
}


def imports(path):
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def module_of(path):
    return path.relative_to(ROOT / "stm_fast").parts[0].removesuffix(".py")


def test_every_module_has_a_floor():
    modules = {module_of(path) for path in (ROOT / "stm_fast").rglob("*.py")}
    assert modules <= set(FLOORS), f"modules without a floor: {sorted(modules - set(FLOORS))}"


@pytest.mark.parametrize("path", sorted((ROOT / "stm_fast").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_go_down(path):
    module = module_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "stm_fast":
            assert len(parts) > 1, f"{path}: imports the package itself, expected one of its modules"
            assert parts[1] == module or FLOORS[parts[1]] < FLOORS[module], f"{path}: {module} imports {parts[1]}"


def test_kernels_do_not_import_the_package():
    for path in (ROOT / "kernels").rglob("*.py"):
        known = {name for name in imports(path) if name.split(".")[0] in {"stm_fast", "kernels"}}
        assert all(name.startswith("stm_fast.kernels") for name in known), f"{path}: imports {known}"


def test_kernels_are_not_a_top_level_package():
    command = [sys.executable, "-c", "import kernels"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "ImportError" in found.stderr
    assert "stm_fast.kernels" in found.stderr
