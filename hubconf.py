"""Entry points of torch.hub, as in ``torch.hub.load("folder/of/this/file", "stm", source="local")``."""

from importlib.util import find_spec
from pathlib import Path

import stm_fast

if find_spec("stm_fast.kernels") is None:
    # in a clone that is not installed, the kernels are beside the package
    stm_fast.__path__.append(str(Path(__file__).resolve().parent))

from stm_fast import load as stm
from stm_fast import stm_lite0, stm_lite2, stm_resnet18, stm_resnet18_half, stm_resnet50

dependencies = ["torch", "numpy", "safetensors"]
__all__ = ["stm", "stm_lite0", "stm_lite2", "stm_resnet18", "stm_resnet18_half", "stm_resnet50"]
