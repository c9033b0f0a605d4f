"""Names of a package that are imported when they are first asked for (PEP 562).

torch takes seconds to import. With these a package can be imported without it: for the help of a command, for an
option that is wrong, for a file that is not there.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a package; its submodules are found too.

    Args:
        package: the package's ``__name__``.
        names: by the module that has them.
    """
    homes = {name: module for module, those in names.items() for name in those}
    namespace = vars(sys.modules[package])

    def find(name: str) -> Any:
        submodule = f"{package}.{name}"
        if name in homes:
            found = getattr(import_module(homes[name]), name)
        elif not name.startswith("__") and find_spec(submodule) is not None:
            found = import_module(submodule)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        namespace[name] = found  # found there from now on
        return found

    return find, lambda: sorted({*namespace, *homes})
