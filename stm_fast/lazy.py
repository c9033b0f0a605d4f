"""Names of a package that are imported on first use (PEP 562).

Importing torch takes seconds. With lazy names a package can be imported without it: to print help, or to report a wrong
option or a missing file.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package; its submodules are found too.

    Args:
        package: the package's ``__name__``.
        names: the names, by the module that defines them.
    """
    modules = {name: module for module, those in names.items() for name in those}
    namespace = vars(sys.modules[package])

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
