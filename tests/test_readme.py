"""What the documents name agrees with the sources: files, environment variables, models that are adapted."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from stm_fast.ops.adapters.families import FUNCTION_READERS, MODULE_READERS, PLAIN_READERS

ROOT = Path(__file__).resolve().parents[1]
DROP_IN = (ROOT / "docs" / "dropin.md").read_text()
VARIABLE = "[A-Z][A-Z0-9_]+"


def test_the_tree_names_existing_files():
    tree = (ROOT / "docs/design.md").read_text().split("## Tree")[1].split("```")[1]
    named = re.findall(r"^(?:  )?([\w/]+(?:\.py)?)/? ", tree, re.MULTILINE)
    packages = {
        path.name for path in (ROOT / "stm_fast").iterdir() if path.is_dir() and (path / "__init__.py").is_file()
    }
    assert packages <= {name.rstrip("/") for name in named}
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "stm_fast" / name).exists(), f"docs/design.md names {name}"


NAMING_FILES = ["CONTRIBUTING.md", "SECURITY.md", "csrc/README.md", "kernels/README.md"]
NAMING_FILES += ["docs/design.md", "docs/extending.md"]


@pytest.mark.parametrize("name", NAMING_FILES)
def test_documents_name_existing_files(name):
    folders = [ROOT / folder for folder in (".", "stm_fast", "tests", "csrc/cpu", "csrc/include/stm_fast")]
    folders.append((ROOT / name).parent)
    named = re.findall(r"`([\w/.]+\.(?:py|h|cpp|md|json))`", (ROOT / name).read_text())
    assert named
    for file in named:
        assert any((folder / file).is_file() for folder in folders), f"{name} names {file}"


def test_the_import_lines_for_other_models_work():
    lines = set(re.findall(r"`(from stm_fast\.[^`]+)`", DROP_IN))
    imported = {}
    for line in lines:
        exec(line, imported)
    assert {"STMMemory", "stcn_read", "do_softmax", "MultiheadAttention"} <= imported.keys()


def test_every_read_that_adapt_finds_is_documented():
    functions = [name for reader in FUNCTION_READERS for name in reader.functions]
    for name in [reader.name for reader in (*MODULE_READERS, *PLAIN_READERS)] + functions:
        assert f"`{name}`" in DROP_IN.split("## Times")[0], name


def constants(tree: ast.Module) -> dict[str, list[str]]:
    """The names of variables in each module-level constant."""
    found: dict[str, list[str]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            pairs = [(statement.targets[0], statement.value)]
            if isinstance(statement.targets[0], ast.Tuple) and isinstance(statement.value, ast.Tuple):
                pairs = [*zip(statement.targets[0].elts, statement.value.elts, strict=True)]
            for target, value in pairs:
                strings = [str(node.value) for node in ast.walk(value) if isinstance(node, ast.Constant)]
                found[ast.unparse(target)] = [string for string in strings if re.fullmatch(VARIABLE, string)]
    return found


def python_variables(source: str) -> Iterator[str]:
    """The environment variables that a module reads; for a name that is not a constant, all its possible values."""
    tree = ast.parse(source)
    known = constants(tree)
    for node in ast.walk(tree):
        keys: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
            keys = node.args[:1]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            keys = [node.slice] * (ast.unparse(node.value) == "os.environ")
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            keys = [node.left]
        for key in keys:
            if isinstance(key, ast.Constant):
                yield key.value
            else:
                yield from known.get(ast.unparse(key)) or [name for names in known.values() for name in names]


def make_variables(source: str) -> set[str]:
    """The variables of a Makefile that may come from the environment."""
    assigned = set(re.findall(rf"^({VARIABLE}) [:+]?=", source, re.MULTILINE))
    return set(re.findall(rf"\$\(({VARIABLE})\)", source)) - assigned


def readers() -> dict[str, set[str]]:
    """The files that read each environment variable."""
    found = defaultdict(set)
    folders = [ROOT / name for name in ("stm_fast", "kernels", "csrc", "benchmarks", "tests", ".ci")]
    files = [ROOT / "setup.py", ROOT / "Makefile", *(path for folder in folders for path in folder.rglob("*"))]
    for path in files:
        text = path.read_text() if path.is_file() and path.suffix in (".py", ".cpp", ".h", "") else ""
        if path.suffix == ".py":
            names = set(python_variables(text)) if "environ" in text or "getenv" in text else set()
        elif path.name == "Makefile":
            names = make_variables(text)
        else:
            names = {*re.findall(rf'getenv\("({VARIABLE})"\)', text), *re.findall(rf"\$\{{({VARIABLE}):-", text)}
        for name in names:
            found[name].add(path.relative_to(ROOT).as_posix())
    return found


def test_every_environment_variable_is_documented_with_its_readers():
    rows = re.findall(rf"^\| `({VARIABLE})` \|.*\|([^|]+)\|$", (ROOT / "docs/environment.md").read_text(), re.MULTILINE)
    documented = {name: set(re.findall("`(.+?)`", places)) for name, places in rows}
    read = readers()
    assert len(documented) == len(rows)
    assert set(documented) == set(read)
    for name, places in documented.items():
        assert places, name
        assert places <= read[name], f"docs/environment.md: {name} is read in {read[name]}"


def test_reads_of_the_environment_are_found():
    source = 'KEY = "A_KEY"\nos.environ["SET"] = os.environ[KEY]\n"IN" in os.environ\nos.getenv("GOT")'
    assert set(python_variables(source)) == {"A_KEY", "IN", "GOT"}
    assert set(python_variables("A, B = 'FIRST', 'SECOND'\nos.environ.get(name)")) == {"FIRST", "SECOND"}
    assert make_variables("A := $(B1)\nC2 ?= x\nall:\n\techo $(A) $(C2)") == {"B1", "C2"}
