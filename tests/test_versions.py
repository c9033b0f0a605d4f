"""docs/install.md says what pyproject.toml and the record of runs say."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTALL = (ROOT / "docs" / "install.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSIONS = runpy.run_path(str(ROOT / ".ci" / "versions.py"))
ROWS = json.loads((ROOT / "docs" / "versions.json").read_text())
OLDEST = dict(line.split("==") for line in (ROOT / ".ci/oldest.txt").read_text().splitlines() if "==" in line)


def test_the_table_of_versions_is_that_of_the_record():
    assert VERSIONS["with_table"](INSTALL, VERSIONS["table"](ROWS, VERSIONS["declared_pythons"]())) == INSTALL


def test_a_python_without_a_run_is_in_the_table():
    table = VERSIONS["table"](ROWS[:1], [*VERSIONS["declared_pythons"](), "3.99"])
    assert "| 3.99 | not run |" in table
    assert table.count("\n") == 1 + 1 + len(VERSIONS["declared_pythons"]())
    with pytest.raises(ValueError, match="not enough values to unpack"):
        VERSIONS["with_table"]("no marks", table)


def test_every_declared_python_and_the_oldest_torch_were_run():
    assert OLDEST["torch"] in {row["torch"].split("+")[0] for row in ROWS}
    for name in VERSIONS["declared_pythons"]():
        assert any(row["python"].startswith(f"{name}.") for row in ROWS), name


def test_ci_runs_the_oldest_declared_versions():
    declared = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["build-system"]["requires"]]
    bounds = dict(re.match(r"([\w-]+)(?:>=([\d.]+))?", each).groups() for each in declared)
    assert {name for name, bound in bounds.items() if bound is None} == {"ninja"}
    for name, version_run in OLDEST.items():
        assert f"{version_run}.".startswith(f"{bounds[name]}."), name
    assert set(OLDEST) == set(bounds) - {"ninja"}


def test_the_extras_are_those_of_pyproject():
    section = INSTALL.split("## Extras")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    declared = {
        extra: ", ".join(re.split("[<>=]", requirement)[0] for requirement in requirements)
        for extra, requirements in PYPROJECT["project"]["optional-dependencies"].items()
    }
    assert rows.keys() == declared.keys()
    assert {extra: rows[extra] for extra in rows if extra != "dev"} == {
        extra: packages for extra, packages in declared.items() if extra != "dev"
    }
