"""The loaded Python modules that belong to the same code base as a model."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

# they define no network of the STM family, and every model contains classes of the first
_LIBRARIES = {"torch", "torchvision", "stm_fast"}


def python_modules(model: nn.Module) -> Iterator[ModuleType]:
    """Loaded modules of the top-level packages, and below the project folders, that define the parts of the model."""
    names = {type(part).__module__ for part in model.modules()}
    own = [sys.modules[name] for name in names if name in sys.modules and _package(name) not in _LIBRARIES]
    packages = {_package(module.__name__) for module in own}
    folders = {folder for module in own if (folder := _project(module)) is not None}
    # the same module may have several names
    loaded = {id(module): module for module in sys.modules.values() if isinstance(module, ModuleType)}
    for module in loaded.values():
        package = _package(module.__name__)
        if package not in _LIBRARIES and (package in packages or _is_below(module, folders)):
            yield module


def _package(name: str) -> str:
    return name.partition(".")[0]


def _project(module: ModuleType) -> Path | None:
    """The folder from which the module is imported; None if it is installed, or has no file."""
    file = _file(module)
    if file is None:
        return None
    # a.b is a/b.py or a/b/__init__.py
    return file.parents[module.__name__.count(".") + (file.stem == "__init__")]


def _is_below(module: ModuleType, folders: set[Path]) -> bool:
    file = _file(module)
    return file is not None and not folders.isdisjoint(file.parents)


def _file(module: ModuleType) -> Path | None:
    """The file of a module that is not installed: a project folder may contain a virtual environment."""
    name = getattr(module, "__file__", None)
    if not isinstance(name, str):
        return None
    file = Path(name).resolve()
    return None if {"site-packages", "dist-packages"} & set(file.parts) else file
