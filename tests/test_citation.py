"""CITATION.cff names the version and the license of pyproject.toml, and the paper."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    # YAML reads a version of two parts as a number
    assert str(citation["version"]) == project["version"]
    assert citation["title"] == project["name"]
    # the code's; weights in the package may have others, after AND
    assert citation["license"] == project["license"].split(" AND ")[0]
    assert citation["authors"] == [{"name": "The stm_fast developers"}]
    assert f"version = {{{project['version']}}}," in (ROOT / "README.md").read_text()
    (paper,) = citation["references"]
    assert paper["doi"] == "10.1109/ICCV.2019.00932"
    assert [author["family-names"] for author in paper["authors"]] == ["Oh", "Lee", "Xu", "Kim"]
