"""Where weights are: in the package, in a file, in a folder that `STM.save_pretrained` wrote, in a store, on the hub.

Nothing here imports torch or uses the network.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from stm_fast.errors import InputError, reading, require_file, shown_text
from stm_fast.network.released import FILES
from stm_fast.store import StoreUrl, place_of
from stm_fast.versions import how_to_install

# the files of a folder that `STM.save_pretrained` wrote
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_REPOSITORY = re.compile(rf"({_NAME}/{_NAME})(?:@([\w][\w./-]{{0,254}}))?", re.ASCII)
# a missing path that ends in one of these is a mistyped file, not a repository
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")


class Repository(NamedTuple):
    """A repository of the Hugging Face hub."""

    name: str  # user/repo
    revision: str | None = None  # a branch, a tag or a commit; None for the default branch

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def find_weights(weights: str | Path) -> Path | Repository | StoreUrl:
    """The file, folder, repository or object in a store that `weights` names.

    Args:
        weights: "default" or "open" for those of the package, a file, a folder that `STM.save_pretrained` wrote, or
            ``user/repo`` or ``user/repo@revision`` on the hub, with or without ``hf://`` in front. What exists on this
            machine wins. Without ``hf://``, a missing path is not looked up on the hub if it ends like a file of
            weights, or if its first folder exists. Or a file in a store, as ``s3://bucket/name``, which is not looked
            up here.

    Raises:
        InputError: nothing there, or a repository without huggingface_hub to read it.
    """
    name = str(weights)
    if name in FILES:
        return FILES[name]
    if name.startswith(HUB):
        return _repository(name.removeprefix(HUB), name)
    path = place_of(weights)
    if isinstance(path, StoreUrl):
        return path
    with reading(path):
        folder = path.is_dir()
    # also a broken link is here, as is a path below it
    here = os.path.lexists(path) or os.path.lexists(path.parent) or path.suffix in _FILES
    if not here and _REPOSITORY.fullmatch(name):
        return _repository(name, name)
    require_file(path / WEIGHTS if folder else path, "a checkpoint")
    return path


def file_of(place: Path | Repository | StoreUrl) -> Path | None:
    """The file of weights on this machine; None for others."""
    if not isinstance(place, Path):
        return None
    return place / WEIGHTS if place.is_dir() else place


def repository(name: str) -> Repository:
    """The repository of that name, with or without ``hf://``. Raises InputError as `find_weights` does."""
    return _repository(name.removeprefix(HUB), name)


def _repository(name: str, given: str) -> Repository:
    match = _REPOSITORY.fullmatch(name)
    if match is None:
        raise InputError(f"{shown_text(given)}: not a name on the hub, expected user/repo or user/repo@revision")
    if find_spec("huggingface_hub") is None:
        hub = f"the Hugging Face hub needs huggingface_hub: {how_to_install('hub')}"
        raise InputError(f"{given}: no such file or folder, and {hub}")
    return Repository(match[1], match[2])
