"""The installed package: public names, the location of the kernels, and a build without a compiler."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import stm_fast
from stm_fast.ops import cpp_ops

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {
    *("InputError", "MemoryConfig", "MemoryRead", "STM", "Segmentation", "VideoSegmenter", "__version__"),
    *("load_checkpoint", "memory_read", "merge_reads", "save_checkpoint", "segment_video"),
    *("stm_resnet18", "stm_resnet50"),
}


def test_the_public_names_exist():
    assert set(stm_fast.__all__) >= PUBLIC
    for name in stm_fast.__all__:
        assert getattr(stm_fast, name) is not None
    assert stm_fast.__version__ == version("stm_fast")


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="stm-fast")
    assert callable(command.load())


def test_the_kernels_come_from_the_top_folder():
    kernels = importlib.import_module("stm_fast.kernels")
    assert Path(kernels.__file__).parent == ROOT / "kernels"
    assert not (ROOT / "stm_fast" / "kernels").exists()


def test_ci_runs_the_oldest_declared_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    oldest = dict(line.split("==") for line in (ROOT / ".ci/oldest.txt").read_text().splitlines() if "==" in line)
    bounds = dict(re.match(r"([\w-]+)(?:>=([\d.]+))?", each).groups() for each in declared)
    assert {name for name, bound in bounds.items() if bound is None} == {"ninja"}
    for name, version_run in oldest.items():
        assert f"{version_run}.".startswith(f"{bounds[name]}."), name
    assert set(oldest) == set(bounds) - {"ninja"}


def build(tree, **environment):
    """Builds the extension in a copy of the sources, with a compiler that does not exist."""
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    for name in ("csrc", "kernels", "stm_fast"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "_C_absent.txt"))
    (tree / "stm_fast/_C.abi3.so").touch()  # from an earlier build
    missing = str(tree / "no-such-compiler")
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "CC": missing, "CXX": missing, "STM_FAST_EXTENSION": "auto", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_without_a_compiler_the_build_succeeds_and_records_the_reason(tmp_path, monkeypatch):
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    reason = tmp_path / "stm_fast" / "_C_absent.txt"
    text = reason.read_text()
    assert text.startswith("not built: no C++ compiler")
    assert "no-such-compiler" in text
    assert text.count("\n") == 1
    assert not list(tmp_path.rglob("*.so"))
    # `info` prints this if the extension does not load
    monkeypatch.setitem(sys.modules, "stm_fast._C", None)
    monkeypatch.setattr(cpp_ops, "files", lambda package: tmp_path / package)
    assert cpp_ops._load() == text.strip()


@pytest.mark.slow
def test_without_a_compiler_a_build_that_requires_the_extension_fails(tmp_path):
    done = build(tmp_path, STM_FAST_EXTENSION="1")
    assert done.returncode != 0
    assert not (tmp_path / "stm_fast" / "_C_absent.txt").exists()


@pytest.mark.slow
def test_the_extension_can_be_switched_off(tmp_path):
    done = build(tmp_path, STM_FAST_EXTENSION="0")
    assert done.returncode == 0, done.stderr
    assert "switched off" in (tmp_path / "stm_fast" / "_C_absent.txt").read_text()
