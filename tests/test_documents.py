"""Every command and every example in the documents runs as written, and every link leads somewhere.

A fenced block is run by its language, from top to bottom of a page, in a folder made by `guide_folder`: `sh` by bash,
`python` in one namespace per page; `text` is output, or what the page says has not been run. Comments above a block
change that:

<!-- run by: FILE -->   that file of the repository runs these commands, each of which it contains; or it reads the
                        examples in Python from the page, which it names
<!-- file: NAME -->     the block is the content of this file in the folder
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.example import SybilFailure
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from command_line import COMMANDS
from guide_folder import YourModel, prepare_guide_folder
from page_client import Client

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", ".github", "benchmarks", "csrc", "docs", "docs/api", "docs/images", "kernels", "stm_fast/weights")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.md"))]
PAGES = {file.relative_to(ROOT).as_posix(): file for file in FILES}
README = PAGES["README.md"].read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DATA = {"bibtex", "json", "toml", "yaml"}
# what Sphinx replaces, with the text that is in the block or in a file
DIRECTIVES = {"{eval-rst}", "{floors}", "{include}", "{toctree}"}
OPEN = "stm-fast open clip.mp4"
BLOCKS = FencedCodeBlockLexer(language=r"[^\n]*")
MARK = re.compile(r"<!-- ([^:\n]+): (\S+) -->\n+\Z")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
PATIENCE = 600  # seconds for one block, on a busy machine


def run_shell(example: Example) -> None:
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euxo", "pipefail", "-c", example.parsed]
    done = subprocess.run(
        command,
        env=os.environ | {"PATH": search, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode != 0:
        raise SybilFailure(example, f"exit code {done.returncode}\n{done.stdout}{done.stderr}")


def commands(block: str) -> list[str]:
    """The commands of a block, without comments, with single spaces."""
    lines = (line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


class Contained:
    """Another file runs the commands."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, example: Example) -> None:
        path = ROOT / self.file
        text = path.read_text() if path.is_file() else ""
        if example.region.lexemes["language"] == "python" and example.path.removeprefix(f"{ROOT}/") in text:
            return
        for command in commands(example.parsed):
            # in a script or a workflow, or in a string of a test; make takes variables
            line = re.compile(rf"""(?:^|["'] ?|: ){re.escape(command)}(?:$|["']| [A-Z]+=)""")
            if not any(line.search(found) for found in commands(text)):
                raise SybilFailure(example, f"{self.file} does not run: {command}")


class Written:
    """The block is a file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, example: Example) -> None:
        Path(self.name).write_text(example.parsed)


def shown(example: Example) -> None:
    """Output, or data: nothing to run."""


def unknown(example: Example) -> None:
    raise SybilFailure(example, "found a block of another language, or another comment above it: it would not be run")


RUN = {"sh": run_shell, "python": PythonEvaluator(), **dict.fromkeys({"text"} | DATA | DIRECTIVES, shown)}
MARKS = {"run by": Contained, "file": Written}


def blocks(document: Document) -> Iterator[Region]:
    """The fenced blocks of a document, each with what its language or the comment above it asks for."""
    for block in BLOCKS(document):
        language = block.lexemes["language"].split()[:1]
        block.parsed = block.lexemes["source"]
        block.evaluator = RUN.get("".join(language), unknown)
        if mark := MARK.search(document.text[: block.start]):
            block.evaluator = MARKS[mark[1]](mark[2]) if mark[1] in MARKS else block.evaluator
        yield block


def parsed(page: str) -> Document:
    return Document.parse(str(PAGES[page]), blocks)


def runs_something(page: str) -> bool:
    return any(region.evaluator in (RUN["sh"], RUN["python"]) for _, region in parsed(page).regions)


@pytest.fixture(scope="session")
def guide_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    prepare_guide_folder(folder)
    return folder


@pytest.fixture
def inside(guide_folder, tmp_path, monkeypatch):
    """A copy of the guides' folder is the working directory."""
    shutil.copytree(guide_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * runs_something(page)) for page in PAGES]
)
def test_commands_and_examples_run_as_written(page):
    run(parsed(page))


def run(document: Document) -> None:
    document.namespace["your_model"] = YourModel()
    for example in document.examples():
        example.evaluate()


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```sh\nfalse\ntrue\n```", "exit code 1"),
        ("```sh\nstm-fast segment clip.mp4 --output out\n```", "exit code 2"),
        ("```python\nassert False, 'wrong'\n```", "wrong"),
        ("```\nstm-fast demo\n```", "another language"),
        ("```console\n$ stm-fast demo\n```", "another language"),
        (
            "<!-- run by: Makefile -->\n```sh\nmake  no-such \\\n  target\n```",
            "Makefile does not run: make no-such target",
        ),
        ("<!-- run by: no-such-file -->\n```sh\nmake demo\n```", "no-such-file does not run: make demo"),
        ("<!-- ran by: Makefile -->\n```sh\nfalse\n```", "exit code 1"),
        ("> ```sh\n> false\n> ```", "exit code 1"),
    ],
)
def test_what_is_wrong_is_found(block, message, tmp_path):
    (tmp_path / "page.md").write_text(f"# Title\n\n{block}\n")
    with pytest.raises(AssertionError, match=message):
        run(Document.parse(str(tmp_path / "page.md"), blocks))


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_the_page_opens_as_the_documents_say(monkeypatch):
    monkeypatch.setenv("BROWSER", "true")  # a program that opens nothing
    command = [Path(sys.executable).with_name("stm-fast"), *shlex.split(OPEN)[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            Client(server.stdout.readline().strip()).enter()
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0
    assert Path("clip-project/project.json").is_file()


def options(command: list[str]) -> set[str]:
    """The options of `stm-fast COMMAND ...`; of a group of commands, none."""
    found = [name for name in COMMANDS if name.split() == command[: len(name.split())] or [name.split()[0]] == command]
    assert found, f"found {command}, expected one of {sorted(COMMANDS)}"
    params = COMMANDS[found[0]].params if len(found) == 1 else []
    return {"-h", *(each for option in params for each in (*option.opts, *option.secondary_opts))}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_exist(page):
    """Of a command in a line of text, the name and the options."""
    for inline in re.findall(r"`(?:python -m )?stm[-_]fast ([a-z][^`]*)`", without_blocks(page)):
        words = inline.split()
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= options(words), f"{page}: stm-fast {inline}"


def without_blocks(page: str) -> str:
    text = PAGES[page].read_text()
    for start, region in reversed(parsed(page).regions):
        text = text[:start] + text[region.end :]
    return text


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MyST make them."""
    found: set[str] = set()
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(next(each for each in (name, *(f"{name}-{count}" for count in range(1, 99))) if each not in found))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in ("".join(found) for found in LINK.findall(without_blocks(page))):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        if "_generated" in target.parts:  # by the build of the documentation
            assert f'"{target.stem}"' in (ROOT / "docs/pictures.py").read_text(), f"{page}: {link}"
            continue
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_readme_is_short():
    assert len(README.splitlines()) < 200


def test_the_badges_are_true():
    badges = dict(re.findall(r"!\[(\w+): [^\]]*\]\(https://img\.shields\.io/badge/\w+-([^)]+)-\w+\)", README))
    torch = next(each for each in PROJECT["dependencies"] if each.startswith("torch>"))
    assert badges == {
        "Python": PROJECT["requires-python"].replace(">=", "%E2%89%A5%20"),
        "PyTorch": torch.removeprefix("torch").replace(">=", "%E2%89%A5%20"),
        "code": "Apache--2.0",
        "weights": "non--commercial",
    }
    assert "Apache-2.0" in PROJECT["license"]
