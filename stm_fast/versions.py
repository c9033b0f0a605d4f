"""Versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version

__version__ = version("stm_fast")


def version_of(package: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
