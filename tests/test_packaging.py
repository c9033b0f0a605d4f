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


BACKEND = """
import sys
import build_backend
build_backend.prepare_metadata_for_build_wheel(sys.argv[1])
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_metadata_needs_no_torch_and_has_no_relative_links(tmp_path):
    tree, written = tmp_path / "tree", tmp_path / "written"
    tree.mkdir()
    written.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("build", "stm_fast.egg-info"):
            (tree / path.name).symlink_to(path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "csrc")}
    command = [sys.executable, "-c", BACKEND, str(written)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = written.glob("*.dist-info/METADATA")
    header, description = file.read_text().split("\n\n", 1)
    assert "License-Expression: Apache-2.0 AND CC-BY-NC-4.0 AND CC-BY-3.0" in header
    assert re.findall("License-File: (.*)", header) == [
        *("LICENSE", "stm_fast/weights/LICENSE-CC-BY-NC-4.0.txt", "stm_fast/weights/NOTICE")
    ]
    links = re.findall(r'\]\(([^)]*)\)|(?:src|srcset|href)="([^"]*)"', description)
    assert len(links) > 5
    relative = [link for pair in links for link in pair if link and not re.match("https://|#", link)]
    assert relative == []


@pytest.fixture
def build_backend(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "csrc")
    backend = importlib.import_module("build_backend")
    for hook in ("get_requires_for_build_wheel", "get_requires_for_build_editable"):
        monkeypatch.setattr(backend.build_meta, hook, lambda config_settings: ["ninja"])
    return backend


@pytest.mark.parametrize(
    ("installed", "extension", "fetched"),
    [
        (None, "auto", ["torch>=2.11"]),
        ("2.11.0+cpu", "auto", []),
        ("2.9.1", "1", ["torch>=2.11"]),
        ("3.0.0a1", "1", []),
        (None, "0", []),
    ],
)
def test_a_build_fetches_torch_only_if_the_environment_has_none(
    build_backend, installed, extension, fetched, tmp_path, monkeypatch
):
    if installed:
        (tmp_path / f"torch-{installed}.dist-info").mkdir()
        (tmp_path / f"torch-{installed}.dist-info/METADATA").write_text(f"Name: torch\nVersion: {installed}\n")
    monkeypatch.setattr(build_backend.site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setenv("STM_FAST_EXTENSION", extension)
    assert build_backend.get_requires_for_build_wheel() == ["ninja", *fetched]
    assert build_backend.get_requires_for_build_editable() == ["ninja", *fetched]


def test_a_wheel_has_no_modules_of_earlier_builds(build_backend, tmp_path, monkeypatch):
    earlier = tmp_path / "build/lib.linux-x86_64-cpython-311/stm_fast/removed.py"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    (tmp_path / "build/extension-0.so").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build_backend.build_meta, "build_wheel", lambda *arguments: "built")
    assert build_backend.build_wheel("wheels") == "built"
    assert [*(tmp_path / "build").iterdir()] == [tmp_path / "build/extension-0.so"]


def test_the_backend_asks_for_the_torch_of_the_project(build_backend):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert build_backend.TORCH in project["dependencies"]


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


LOGGED = """#!/bin/sh
echo "$@" >> {log}
exec c++ "$@"
"""


@pytest.mark.slow
def test_an_extension_is_compiled_once(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("stm_fast", "kernels/experimental", "csrc"):
        (tmp_path / folder).mkdir(parents=True)
    source = tmp_path / "csrc/source.cpp"
    (tmp_path / "csrc/exports.map").touch()
    source.write_text("int answer() { return 41; }")
    log = tmp_path / "log"
    (tmp_path / "c++").write_text(LOGGED.format(log=log))
    (tmp_path / "c++").chmod(0o755)
    environment = {**os.environ, "CXX": str(tmp_path / "c++"), "STM_FAST_EXTENSION": "1"}

    def compiled(*options):
        log.unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "build/temp", ignore_errors=True)  # as if the headers of torch were others
        (tmp_path / "stm_fast/_C.abi3.so").unlink(missing_ok=True)
        command = [sys.executable, "setup.py", "build_ext", "--inplace", "--build-temp", "build/temp", *options]
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
        assert (tmp_path / "stm_fast/_C.abi3.so").stat().st_size > 0
        return "source.cpp" in log.read_text()

    assert compiled()
    assert not compiled()
    assert compiled("--force")
    source.write_text("int answer() { return 42; }")
    assert compiled()
    assert not compiled()
    assert len([*(tmp_path / "build").glob("extension-*")]) == 1


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
