"""Versions of installed packages, and how to install those that only some uses need."""

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires, version

__version__ = version("stm_fast")


def version_of(package: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra of pyproject.toml.

    It names them one by one, which is right whether stm_fast comes from a clone, a file or a package index.
    """
    marked = re.compile(rf"""(.+?)\s*;\s*extra\s*==\s*["']{extra}["']""")
    found = (marked.fullmatch(requirement) for requirement in requires("stm_fast") or ())
    return shlex.join(["pip", "install", *(match[1] for match in found if match is not None)])
