"""Loads networks: the one place that commands and Python share."""

from pathlib import Path
from typing import Any

import torch

from stm_fast.network.checkpoint import load_network
from stm_fast.network.deploy import for_inference
from stm_fast.network.deploy.precision import choose_dtype
from stm_fast.network.device import choose_device
from stm_fast.network.folder import read_network
from stm_fast.network.places import CONFIG, WEIGHTS, Repository, find_weights
from stm_fast.network.released import DEFAULT
from stm_fast.network.stm import STM
from stm_fast.store import StoreUrl, downloaded


def load(
    weights: str | Path = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    compile: str | None = None,
) -> STM:
    """A network prepared for inference, for `VideoSegmenter`, `segment_video` and so on.

    Nothing is downloaded, except from a repository of the Hugging Face hub, which is named as ``user/repo``, or from a
    store, as ``s3://bucket/name.safetensors``.

    Args:
        weights: "default", the package's weights; "open", its weights trained without DAVIS; a checkpoint that
            `load_checkpoint` accepts; a folder from `STM.save_pretrained`; or ``user/repo``, ``user/repo@revision`` or
            ``hf://user/repo``, for which huggingface_hub is needed. What exists on this machine wins.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        dtype: "float32", "float16", "bfloat16", or "auto" for the fastest one of the device.
        compile: a mode of torch.compile.

    Returns:
        A copy from :func:`stm_fast.network.deploy.for_inference`, which carries the weights' `min_size`. It cannot be
        trained, moved or saved: `STM.from_pretrained` loads one that can.

    Raises:
        InputError: no such weights, device, dtype or mode; files that are damaged or do not fit; or a hub that cannot
            be reached or refuses access.
    """
    place = choose_device(str(device))
    return prepare(load_weights(weights).to(place), dtype, compile)


def load_weights(weights: str | Path, revision: str | None = None, **options: Any) -> STM:
    """The network of `weights`, see `load`, in float32 on the CPU. Raises InputError as `load` does.

    Args:
        revision, options: as in `STM.from_pretrained`.
    """
    place = find_weights(weights)
    if isinstance(place, Repository):
        # imports huggingface_hub
        from stm_fast.network.hub import download

        return read_network(*download(place if revision is None else place._replace(revision=revision), **options))
    if isinstance(place, StoreUrl):
        with downloaded(place) as file:
            return load_network(file)
    return read_network(place / CONFIG, place / WEIGHTS) if place.is_dir() else load_network(place)


def prepare(model: STM, dtype: str, compile: str | None) -> STM:
    """Prepares a network for inference on its device. Raises InputError for an unknown dtype or mode."""
    return for_inference(model, dtype=choose_dtype(dtype, next(model.parameters()).device), compile=compile)
