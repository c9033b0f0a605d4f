"""tests/release_check.py: each item fails if its fault is planted, and says what it found."""

import subprocess
import zipfile
from importlib.metadata import version

import pytest

import gate_record
import release_check

VERSION = version("stm_fast")
PROJECT = f"""
[build-system]
requires = ["setuptools>=77"]

[project]
name = "stm_fast"
version = "{VERSION}"
license-files = ["LICENSE"]
dependencies = ["torch>=2.11", "fastapi"]

[project.optional-dependencies]
dev = ["pytest"]
"""
FILES = {
    "pyproject.toml": PROJECT,
    "CHANGELOG.md": f"# Changelog\n\n## {VERSION} (2026-12-01)\n\n- First.\n\n## 0.0.1 (2026-01-01)\n",
    "CITATION.cff": f"version: {VERSION}\ndate-released: 2026-12-01\n",
    "constraints.txt": "torch==2.14.1\nfastapi==0.165.0\n# tools\nstarlette==1.10.0\npytest==9.2.0\nsetuptools==84.2\n",
    "stm_fast/__init__.py": "",
}


def git(folder, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A repository that is ready for a release."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "All")
    return tmp_path


@pytest.mark.parametrize("name", ["versions", "tree", "unfinished", "pins"])
def test_a_repository_that_is_ready_passes(name, repository):
    assert [*release_check.CHECKS[name](repository)] == []


@pytest.mark.parametrize(
    ("check", "name", "old", "new", "found"),
    [
        ("versions", "pyproject.toml", f'version = "{VERSION}"', 'version = "9.0"', "__version__: found"),
        ("versions", "CHANGELOG.md", f"## {VERSION} (", "## 0.0.9 (", "CHANGELOG.md: found 0.0.9 at the top"),
        ("versions", "CHANGELOG.md", "2026-12-01", "unreleased", "CHANGELOG.md: found (unreleased), expected the day"),
        ("versions", "CHANGELOG.md", "## ", "### ", "CHANGELOG.md: found 0.0.1 at the top"),
        ("versions", "CHANGELOG.md", " (2026-12-01)", "", "CHANGELOG.md: found (), expected the day"),
        ("versions", "CITATION.cff", f"version: {VERSION}", "version: 0.0.9", "CITATION.cff: found version 0.0.9"),
        ("versions", "CITATION.cff", "2026-12-01", "2026-11-01", "found date-released 2026-11-01, expected 2026-12-01"),
        ("unfinished", "stm_fast/__init__.py", "", "# TO" + "DO: more", "stm_fast/__init__.py: found TO" + "DO"),
        ("pins", "constraints.txt", "pytest==9.2.0\n", "", "found no pytest"),
        (
            "pins",
            "constraints.txt",
            "torch==2.14.1\n",
            "torch==2.14.1\nflask==3.0\n",
            "found flask, expected a package",
        ),
        ("tree", "CITATION.cff", "2026", "2027", "found 1 changed files such as CITATION.cff"),
    ],
)
def test_a_planted_fault_is_found(check, name, old, new, found, repository):
    text = (repository / name).read_text()
    (repository / name).write_text(text.replace(old, new, 1) if old else new)
    (complaint, *_) = release_check.CHECKS[check](repository)
    assert found in complaint


def test_a_version_that_has_a_tag_is_refused(repository):
    git(repository, "tag", f"v{VERSION}")
    assert [*release_check.tree(repository)] == [f"git tag: found v{VERSION}, expected a version that has no tag"]


def test_a_missing_citation_is_found(repository):
    (repository / "CITATION.cff").unlink()
    assert [*release_check.versions(repository)] == ["CITATION.cff: no such file"]


def test_a_record_of_the_gate_for_other_sources_is_found(repository, monkeypatch):
    monkeypatch.setattr(gate_record, "passed_before", lambda kind: kind == "compiled")
    assert [*release_check.gate(repository)] == [
        "tests/golden/gate.json: found other sources or Triton for 'interpreted'; run make gate"
    ]


@pytest.mark.slow
def test_failing_tests_are_named(repository, monkeypatch):
    (repository / "test_it.py").write_text("def test_documents():\n    assert False\n")
    monkeypatch.setattr(release_check, "TESTS", ("test_it.py",))
    (complaint,) = release_check.tests(repository)
    assert "FAILED test_it.py::test_documents" in complaint


def test_what_is_missing_in_a_wheel_is_found(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("stm_fast/__init__.py", "")
        archive.writestr("stm_fast-1.dist-info/licenses/LICENSE", "")
    assert [*release_check.missing(wheel, ["stm_fast/__init__.py", "licenses/LICENSE"])] == []
    (complaint,) = release_check.missing(wheel, ["stm_fast/a.py", "stm_fast/b.py", "stm_fast/__init__.py"])
    assert complaint.startswith("the wheel: found no stm_fast/a.py (2 files are absent)")


@pytest.mark.slow
def test_a_build_that_fails_is_reported(repository):
    (repository / "pyproject.toml").write_text(PROJECT.replace("version =", "number ="))
    (complaint,) = release_check.packages(repository)
    assert complaint.startswith("python -m build: ")


def test_every_item_is_printed_and_a_failure_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(release_check, "CHECKS", {"one": lambda _: [], "two": lambda _: ["found 2", "found 3"]})
    assert release_check.main() == 1
    assert capsys.readouterr().out == "one: ok\ntwo: found 2; found 3\n"
    monkeypatch.setattr(release_check, "CHECKS", {"one": lambda _: []})
    assert release_check.main() == 0
