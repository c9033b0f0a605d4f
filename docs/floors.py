"""The directive `floors`: the packages by the floors that tests/test_architecture.py checks."""

import ast
from collections import defaultdict
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def floors_of(test: Path) -> dict[int, list[str]]:
    """The modules and packages on each floor, from the top, as the test's FLOORS lists them."""
    for statement in ast.parse(test.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "FLOORS":
            found = defaultdict(list)
            for name, floor in ast.literal_eval(statement.value).items():
                found[floor].append(name)
            return dict(sorted(found.items(), reverse=True))
    raise ValueError(f"{test}: found no FLOORS, expected a dict of floors by name")


def drawn(floors: dict[int, list[str]], package: Path) -> str:
    """The picture in HTML; packages, unlike single modules, are emphasized."""
    rows = []
    for floor, names in floors.items():
        boxes = []
        for name in names:
            kind = "module" if (package / f"{name}.py").is_file() else "package"
            boxes.append(f'<span class="{kind}">{escape(name)}</span>')
        rows.append(f'<li value="{floor}">{"".join(boxes)}</li>')
    return f'<ol class="floors" reversed>{"".join(rows)}</ol>'


def setup(app: Sphinx, test: Path) -> None:
    """Adds the directive."""

    class Floors(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            self.env.note_dependency(test)
            html = drawn(floors_of(test), test.parents[1] / "stm_fast")
            return [nodes.raw("", html, format="html")]

    app.add_directive("floors", Floors)
