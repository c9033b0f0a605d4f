"""The build backend: setuptools, with the PyTorch of the environment that the package is installed into.

pip, uv and build make an isolated environment for each build. A torch in it would be a download of gigabytes for the
build alone. An installed torch is used instead; one is required only where there is none that the package could run
with, or where the front end hides the environment (uv and build do; not with --no-build-isolation).
"""

import os
import re
import shutil
import site
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no torch)

TORCH = "torch>=2.11"  # as in pyproject.toml
Settings = Mapping[str, str | list[str] | None] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_to_fetch()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_to_fetch()]


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    _show_installed_torch()
    for modules in Path("build").glob("lib*"):  # setuptools would pack those that the sources no longer have
        shutil.rmtree(modules)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _show_installed_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _torch_to_fetch() -> list[str]:
    """The requirement on torch, unless one is installed or the extension is switched off."""
    return [] if os.getenv("STM_FAST_EXTENSION") == "0" or _installed_torch() else [TORCH]


def _installed_torch() -> bool:
    """Whether the environment of this interpreter, which pip hides from sys.path only, has a torch to build with."""
    found = [torch.version for torch in distributions(name="torch", path=site.getsitepackages())]
    return bool(found) and _numbers(found[0]) >= _numbers(TORCH)


def _numbers(version: str) -> list[int]:
    """Major and minor version."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def _show_installed_torch() -> None:
    """Lets the build import that torch, after what was installed for the build."""
    if _installed_torch():
        sys.path.extend(path for path in site.getsitepackages() if path not in sys.path)
