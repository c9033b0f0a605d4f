"""The documentation site: `make docs` builds it, offline, with every warning an error."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy.typing as npt
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import floors  # noqa: E402
import links  # noqa: E402
import pictures  # noqa: E402
from stm_fast.versions import __version__  # noqa: E402

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]

project = "stm_fast"
release = version = __version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
templates_path: list[str] = []
exclude_patterns = ["images"]

html_theme = "furo"
html_title = f"stm_fast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view"],
}
copybutton_exclude = ".linenos, .gp, .go"

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the notebook keeps its outputs, and tests/test_notebook.py executes it
nb_number_source_lines = False

# docstrings follow Google's style; a name in single backticks is a link if the name is documented, otherwise code
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
add_module_names = False

nitpicky = True
nitpick_ignore_regex = [
    # other projects: their documentation would have to be fetched, and the site is built offline
    (r"py:.*", r"(av|np|npt|nn|numpy|ArrayLike|PIL|supervision|torch|ProcessGroup|Tensor)(\..*)?"),
    # of the standard library
    (r"py:.*", r"(collections|fractions|os|pathlib|typing)\..*|Any|Callable|Path|Self|SupportsFloat|SupportsIndex"),
    # types and modules of the package that are not public, in the signatures and docstrings of what is
    (r"py:(class|mod)", r"stm_fast\..*|Sound|ResNet50_Weights"),
]

_SHAPE = re.compile(r"(?<![`\w\[])(\[(?:[A-Z]|(?:[A-Z0-9.][\w.+*/' -]*)(?:, [\w.+*/' -]+)+)\])(?![`_(])")
_ARRAY_LIKE = stringify_annotation(npt.ArrayLike, "smart")


def shapes_as_code(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Marks shapes such as [B, M, Ck] as code, in docstrings that do not."""
    lines[:] = [line if "``" in line else _SHAPE.sub(r"``\1``", line) for line in lines]


def short_types(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Shows NumPy's ArrayLike under its name, not as the union that it stands for."""
    types = app.env.current_document.autodoc_annotations.get(name, {})
    types.update({argument: type_.replace(_ARRAY_LIKE, "ArrayLike") for argument, type_ in types.items()})


def short_defaults(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Shows defaults that are functions as "..."."""
    return (arguments and re.sub("<function .*?>+(?=[,)])", "...", arguments)), returned


def code_if_unknown(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    """A name in single backticks that is not documented, such as that of an argument, is code."""
    return content if node.get("reftype") == "obj" else None


def without_overloads(module: str) -> None:
    """Shows the signatures of the functions of a module as they are defined, with their defaults."""
    analyzer = ModuleAnalyzer.for_module(module)
    analyzer.analyze()
    analyzer.overloads.clear()


def setup(app: Sphinx) -> None:
    without_overloads("stm_fast.ops.functional")
    app.connect("autodoc-process-docstring", shapes_as_code)
    app.connect("autodoc-process-docstring", short_types)
    app.connect("autodoc-process-signature", short_defaults)
    app.connect("missing-reference", code_if_unknown)
    links.setup(app, ROOT, REPOSITORY, pictures.FOLDER)
    floors.setup(app, ROOT / "tests" / "test_architecture.py")
    pictures.setup(app)
