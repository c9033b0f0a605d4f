"""What README shows runs as written."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=["segment", "memory_read"])
def test_examples_run_as_written(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})


def test_the_tree_names_what_exists():
    tree = README.split("## Tree")[1].split("```")[1]
    named = re.findall(r"^(?:  )?([\w/]+(?:\.py)?)/? ", tree, re.MULTILINE)
    rooms = {path.name for path in (ROOT / "stm_fast").iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    assert rooms <= {name.rstrip("/") for name in named}
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "stm_fast" / name).exists(), f"README names {name}"
