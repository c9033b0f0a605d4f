"""Builders of the named networks, in torchvision's style."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_fast.network.architecture import NETWORKS
from stm_fast.network.checkpoint import load_backbone, load_checkpoint
from stm_fast.network.released import DEFAULT, weights_file
from stm_fast.network.stm import STM

if TYPE_CHECKING:
    from torchvision.models import ResNet18_Weights, ResNet50_Weights


def stm_resnet50(
    *,
    weights: str | Path | None = None,
    weights_backbone: "ResNet50_Weights | str | Path | None" = None,
    **kwargs: int,
) -> STM:
    """The published network: 38.93 M parameters and 0.06 M BatchNorm statistics.

    Args:
        weights: a checkpoint of the whole network, see `load_checkpoint`; None leaves it untrained.
        weights_backbone: torchvision's weights (may be downloaded) or a file with the state dict of its ResNet-50, for
            both encoders; ignored if `weights` is given.
        kwargs: `key_dim`, `value_dim`, `decoder_dim` of `STM`.

    Raises:
        InputError: a file that is missing, damaged or does not fit.
    """
    return _build("resnet50", weights, weights_backbone, kwargs)


def stm_resnet18(
    *,
    weights: str | Path | None = None,
    weights_backbone: "ResNet18_Weights | str | Path | None" = None,
    **kwargs: int,
) -> STM:
    """The published architecture on a ResNet-18; arguments and errors as in `stm_resnet50`."""
    return _build("resnet18", weights, weights_backbone, kwargs)


def stm_resnet18_half(*, weights: str | Path | None = None, **kwargs: int) -> STM:
    """On a ResNet-18 of half width, 2.4 M parameters: the smallest network with separate query and memory encoders.

    Args:
        weights: a checkpoint; None leaves it untrained.
        kwargs: `key_dim`, `value_dim`, `decoder_dim` of `STM`; by default 64, 128, 64, with `unit_keys` and position
            waves.

    Raises:
        InputError: a file that is missing, damaged or does not fit.
    """
    return _build("resnet18_half", weights, None, kwargs)


def stm_lite2(
    *, weights: str | Path | None = DEFAULT, weights_backbone: str | Path | None = None, **kwargs: int
) -> STM:
    """The network whose weights come with the package: one EfficientNet-Lite2 for query and memory, 1.5 M parameters.

    Args:
        weights: "default" for the package's weights, see their model card in `stm_fast/weights`; "open" for those
            trained without DAVIS; a checkpoint of the whole network, see `load_checkpoint`; or None for an untrained
            network.
        weights_backbone: weights of the trunk alone, in place of the default: "efficientnet-lite2" for the ImageNet
            weights on the package index, or a file with their state dict.
        kwargs: `key_dim`, `value_dim`, `decoder_dim` of `STM`; by default 96, 64, 64.

    Raises:
        InputError: a file that is missing, damaged or does not fit.
    """
    if weights_backbone is not None and weights == DEFAULT:
        weights = None
    return _build("lite2", weights, weights_backbone, kwargs)


def stm_lite0(*, weights: str | Path | None = None, weights_backbone: str | Path | None = None, **kwargs: int) -> STM:
    """The smallest network, 1.0 M parameters: as `stm_lite2`, on an EfficientNet-Lite0, and untrained by default.

    Args:
        weights: a checkpoint of the whole network; None leaves its heads untrained.
        weights_backbone: "efficientnet-lite0" or a file; ignored if `weights` is given.
        kwargs: as in `stm_lite2`.

    Raises:
        InputError: a file that is missing, damaged or does not fit.
    """
    return _build("lite0", weights, weights_backbone, kwargs)


def _build(
    name: str,
    weights: str | Path | None,
    weights_backbone: "ResNet18_Weights | ResNet50_Weights | str | Path | None",
    kwargs: dict[str, Any],
) -> STM:
    model = STM(**(asdict(NETWORKS[name]) | kwargs))
    if weights is not None:
        load_checkpoint(model, weights_file(weights))
    elif weights_backbone is not None:
        load_backbone(model, weights_backbone)
    return model
