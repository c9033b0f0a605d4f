"""What must hold before a release: `make release-check` prints each item with "ok", or what was found and expected.

docs/releasing.md has the steps around it. What the tests check anyway is not repeated here: the item "tests" runs those
that compare documents, figures and versions with the sources.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gate_record

ROOT = Path(__file__).resolve().parents[1]
Check = Callable[[Path], Iterable[str]]  # yields a line for each thing that is wrong
UNFINISHED = re.compile(rb"\b(TODO|FIXME|XXX)\b")
TESTS = (
    "tests/test_benchmarking.py::test_the_documents_show_the_recorded_figures",
    "tests/test_packaging.py::test_the_public_names_exist",
    "tests/test_citation.py",
    "tests/test_project_files.py",
    "tests/test_readme.py",
    "tests/test_versions.py",
)


def main() -> int:
    failed = False
    for name, check in CHECKS.items():
        complaints = list(check(ROOT))
        failed |= bool(complaints)
        print(f"{name}: {'; '.join(complaints)}" if complaints else f"{name}: ok", flush=True)
    return int(failed)


def versions(root: Path) -> Iterator[str]:
    """One version everywhere, with the day of the release in CHANGELOG.md and CITATION.cff."""
    expected = _project(root)["version"]
    try:
        installed = version("stm_fast")
    except PackageNotFoundError:
        installed = "none"
    if installed != expected:
        yield f"stm_fast.__version__: found {installed}, expected {expected} of pyproject.toml; run make setup"
    top = re.search(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    found, _, day = (top.group(1) if top else "no entry").partition(" (")
    day = day.removesuffix(")")
    if found != expected:
        yield f"CHANGELOG.md: found {found} at the top, expected {expected} of pyproject.toml"
    if not _is_date(day):
        yield f"CHANGELOG.md: found ({day}), expected the day of the release, like (2026-12-01)"
    if not (root / "CITATION.cff").is_file():
        yield "CITATION.cff: no such file"
        return
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    if str(citation.get("version")) != expected:
        yield f"CITATION.cff: found version {citation.get('version')}, expected {expected} of pyproject.toml"
    if _is_date(day) and str(citation.get("date-released")) != day:
        yield f"CITATION.cff: found date-released {citation.get('date-released')}, expected {day} of CHANGELOG.md"


def tree(root: Path) -> Iterator[str]:
    """Nothing uncommitted, and no tag of this version yet."""
    changed = _git(root, "status", "--porcelain")
    if changed:
        yield f"git status: found {len(changed)} changed files such as {changed[0][3:]}, expected none"
    tag = f"v{_project(root)['version']}"
    if _git(root, "tag", "--list", tag):
        yield f"git tag: found {tag}, expected a version that has no tag"


def unfinished(root: Path) -> Iterator[str]:
    """No marks of unfinished work in the files of the repository."""
    for name in _git(root, "ls-files"):
        path = root / name
        if path.suffix in (".png", ".jpg", ".safetensors") or path.name == Path(__file__).name or not path.is_file():
            continue
        mark = UNFINISHED.search(path.read_bytes())
        if mark:
            yield f"{name}: found {mark.group().decode()}, expected none"


def pins(root: Path) -> Iterator[str]:
    """constraints.txt pins what pyproject.toml requires, or what those packages require, and each of the former."""
    project = _project(root)
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    build = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["requires"]
    required = {canonicalize_name(Requirement(line).name) for group in (*groups, build) for line in group}
    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    for name in sorted(required - pinned - {"triton"}):  # each version of torch requires one version of Triton
        yield f"constraints.txt: found no {name}, expected a version, because pyproject.toml requires it"
    for name in sorted(pinned - required - {line for one in required for line in _required_by(one)}):
        yield f"constraints.txt: found {name}, expected a package that pyproject.toml requires"


def gate(_root: Path) -> Iterator[str]:
    """make gate ran with these kernels, these operators and this Triton."""
    for kind in gate_record.SOURCES:
        if not gate_record.passed_before(kind):
            yield f"tests/golden/gate.json: found other sources or Triton for {kind!r}; run make gate"


def tests(root: Path) -> Iterator[str]:
    """The tests that compare documents, figures and versions with the sources."""
    done = _run(root, sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--tb=line", *TESTS)
    if done.returncode:
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        yield f"found {', '.join(failed) or _last_line(done)}, expected all to pass"


def packages(root: Path) -> Iterator[str]:
    """The sdist and the wheel: what they contain, their licenses, and how PyPI will show them.

    The wheel is built without the extension, which .github/workflows/wheels.yml builds for each machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
        done = _run(root, *build, STM_FAST_EXTENSION="0")
        if done.returncode:
            yield f"python -m build: {_last_line(done)}"
            return
        (sdist,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
        done = _run(root, sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
        if done.returncode:
            yield f"twine check --strict: {_last_line(done)}"
        done = _run(root, ".ci/complete", str(sdist))
        if done.returncode:
            yield f".ci/complete: {_last_line(done)}"
        installed = [name for name in _git(root, "ls-files") if re.match(r"stm_fast/|kernels/.*\.py$", name)]
        licenses = [f"licenses/{name}" for name in _project(root)["license-files"]]
        yield from missing(wheel, [*map(_installed_as, installed), *licenses])


def missing(wheel: Path, expected: Iterable[str]) -> Iterator[str]:
    """Files that a wheel should have; those of its metadata are named without their folder, which names the version."""
    with zipfile.ZipFile(wheel) as archive:
        found = {re.sub(r"^[^/]+\.dist-info/", "", name) for name in archive.namelist()}
    absent = sorted(set(expected) - found)
    if absent:
        yield f"the wheel: found no {absent[0]} ({len(absent)} files are absent), expected all of the repository"


def _installed_as(name: str) -> str:
    return f"stm_fast/{name}" if name.startswith("kernels/") else name


def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project


def _required_by(name: str) -> Iterator[str]:
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:
        return
    yield from (canonicalize_name(Requirement(line).name) for line in lines)


def _is_date(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False


def _git(root: Path, *arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()


def _run(root: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return next(iter((done.stderr or done.stdout).strip().splitlines()[-1:]), f"exit code {done.returncode}")


CHECKS: dict[str, Check] = {
    "versions": versions,
    "tree": tree,
    "unfinished": unfinished,
    "pins": pins,
    "gate": gate,
    "tests": tests,
    "packages": packages,
}

if __name__ == "__main__":
    sys.exit(main())
