"""Files that the hosting site reads: issue forms, workflows, dependabot, and the documents that they refer to."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
# https://docs.github.com/communities/using-templates-to-encourage-useful-issues-and-pull-requests/syntax-for-issue-forms
ELEMENTS = {"checkboxes", "dropdown", "input", "markdown", "textarea"}


def loaded(path):
    # yaml reads the key `on` as a truth value
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}


def faults_of_form(form):
    for name in ("name", "description"):
        if not isinstance(form.get(name), str):
            yield f"no {name}"
    if set(form) - {"name", "description", "labels", "title", "body", "assignees", "projects", "type"}:
        yield f"unknown keys: {set(form)}"
    elements = form.get("body") or []
    if not any(element.get("type") != "markdown" for element in elements):
        yield "asks nothing"
    for element in elements:
        attributes = element.get("attributes", {})
        if element.get("type") not in ELEMENTS:
            yield f"unknown type {element.get('type')}"
        if not attributes.get("value" if element.get("type") == "markdown" else "label"):
            yield f"an element of type {element.get('type')} without text"
        if set(element.get("validations", {})) - {"required"} or set(element) - {
            *("type", "id", "attributes", "validations")
        }:
            yield f"unknown keys: {set(element)}"
    names = [element["id"] for element in elements if "id" in element]
    if len(names) != len(set(names)):
        yield f"two elements of one id: {names}"


def faults_of_workflow(workflow):
    if not workflow.get("on"):
        yield "starts at nothing"
    if not isinstance(workflow.get("permissions"), dict):
        yield "no permissions at the top: a job would get those that the repository gives by default"
    elif "write" in workflow["permissions"].values():
        yield "write permissions at the top, expected in the job that needs them"
    for name, job in workflow["jobs"].items():
        if "uses" not in job and not job.get("runs-on"):
            yield f"{name}: no runs-on"
        for step in job.get("steps", []):
            if ("uses" in step) == ("run" in step):
                yield f"{name}: a step has one of uses and run: {step}"
            if "uses" in step and not re.search(r"@[0-9a-f]{40}$", step["uses"]):
                yield f"{name}: {step['uses']} is not pinned to a commit"
            for file in re.findall(r"(?<![\w/])\.ci/\w+(?:\.py)?", step.get("run", "")):
                if not (ROOT / file).is_file():
                    yield f"{name}: runs {file}, which does not exist"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path):
    assert not [*faults_of_form(loaded(path))]


def test_the_forms_ask_for_what_an_answer_needs():
    assert {path.stem for path in FORMS} == {"bug", "feature", "speed", "wrong-masks"}
    for name, command in [("bug", "stm-fast info"), ("speed", "stm-fast benchmark"), ("wrong-masks", "run.json")]:
        asked = [
            element for element in loaded(GITHUB / f"ISSUE_TEMPLATE/{name}.yml")["body"] if "validations" in element
        ]
        assert any(command in element["attributes"]["label"] for element in asked)


def test_vulnerabilities_are_not_reported_as_issues():
    config = loaded(GITHUB / "ISSUE_TEMPLATE/config.yml")
    assert config["blank_issues_enabled"] is False
    assert all(set(link) == {"name", "url", "about"} for link in config["contact_links"])
    assert any(link["url"].endswith("/security/advisories/new") for link in config["contact_links"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_pinned_actions_and_few_permissions(path):
    assert not [*faults_of_workflow(loaded(path))]


def test_ci_runs_the_script_of_ci():
    steps = loaded(GITHUB / "workflows/ci.yml")["jobs"]["run"]["steps"]
    assert steps[-1]["run"] == ".ci/run"


def test_dependabot_updates_what_the_repository_has():
    updates = loaded(GITHUB / "dependabot.yml")["updates"]
    assert [update["package-ecosystem"] for update in updates] == ["pip", "github-actions"]
    for update in updates:
        assert update["directory"] == "/"
        assert update["schedule"]["interval"] in ("daily", "weekly", "monthly")


def test_security_says_how_to_report_and_which_versions_are_supported():
    text = (ROOT / "SECURITY.md").read_text()
    assert "privately" in text
    assert "Supported is the latest release" in text


# each planted fault is found


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("name: A bug\n", "", "no name"),
        ("type: textarea", "type: text", "unknown type text"),
        ("id: info", "id: input", "two elements of one id"),
        ("labels: [bug]", "label: bug", "unknown keys"),
    ],
)
def test_faults_of_forms_are_found(old, new, found, tmp_path):
    text = (GITHUB / "ISSUE_TEMPLATE/bug.yml").read_text()
    assert old in text
    (tmp_path / "form.yml").write_text(text.replace(old, new))
    assert found in " ".join(faults_of_form(loaded(tmp_path / "form.yml")))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (r"@[0-9a-f]{40} # v", "@v", "is not pinned to a commit"),
        (r"permissions:\n  contents: read\n", "", "no permissions at the top"),
        (r"contents: read", "contents: write", "write permissions"),
        (r"run: \.ci/run", "run: .ci/other", "runs .ci/other, which does not exist"),
        (r"    runs-on: .*\n", "", "no runs-on"),
    ],
)
def test_faults_of_workflows_are_found(old, new, found, tmp_path):
    text = (GITHUB / "workflows/ci.yml").read_text()
    changed = re.sub(old, new, text)
    assert changed != text
    (tmp_path / "workflow.yml").write_text(changed)
    assert found in " ".join(faults_of_workflow(loaded(tmp_path / "workflow.yml")))
