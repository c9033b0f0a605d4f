"""The mean of several networks of one architecture."""

from collections.abc import Sequence

import torch

from stm_fast.errors import InputError
from stm_fast.network.stm import STM


@torch.no_grad()
def into_mean(models: Sequence[STM]) -> STM:
    """Replaces the weights and statistics of the first model by the mean over all models, and returns it.

    The mean of several runs from the same initial weights often scores better than each of them ("Model soups",
    Wortsman et al., ICML 2022).

    Its `min_size` becomes the largest of theirs.

    Raises:
        InputError: models of different architectures.
    """
    first, *rest = models
    for other in rest:
        if other.architecture != first.architecture:
            raise InputError(f"mean: found {first.architecture} and {other.architecture}, expected equal ones")
    first.min_size = max(model.min_size for model in models)
    states = [model.state_dict() for model in models]
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    return first
