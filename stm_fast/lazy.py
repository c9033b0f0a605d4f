"""Names of a package that are imported on first use (PEP 562).

Importing torch takes seconds. With lazy names a package can be imported without it: to print help, or to report a wrong
option or a missing file.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose names are imported in its ``if TYPE_CHECKING`` block.

    Submodules are found too.

    Args:
        package: the package's ``__name__``.
    """
    namespace = vars(sys.modules[package])
    modules = _deferred_imports(namespace["__loader__"].get_source(package))

    def find(name: str) -> Any:
        submodule = f"{package}.{name}"
        if name in modules:
            found = getattr(import_module(modules[name]), name)
        elif not name.startswith("__") and find_spec(submodule) is not None:
            found = import_module(submodule)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        namespace[name] = found  # later lookups do not come here
        return found

    return find, lambda: sorted({*namespace, *modules})


def _deferred_imports(source: str) -> dict[str, str]:
    """The module of every name that is imported in an ``if TYPE_CHECKING`` block."""
    blocks = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = [
        statement
        for block in blocks
        if ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
    ]
    return {alias.name: str(statement.module) for statement in imports for alias in statement.names}
