"""For Python processes that a launchless one starts: the device is installed as soon as they import torch."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _InstallsAfterTorch:
    """Finds torch, once, with a loader that then installs the device."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                from launchless import install_as_asked

                install_as_asked()

            spec.loader.exec_module = exec_module
        return spec


if "STM_FAST_LAUNCHLESS" in os.environ:
    sys.meta_path.insert(0, _InstallsAfterTorch())
