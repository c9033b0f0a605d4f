"""An average of the weights over the steps, which scores better and varies less than the weights themselves."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

# how torch passes averages and weights
TensorList = tuple[Tensor, ...] | list[Tensor]


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of parameters and buffers, whose decay grows to `decay`.

    The n-th update keeps ``min(decay, (1 + n) / (10 + n))``, so that the untrained start is soon forgotten.
    """

    @torch.no_grad()
    def update(averages: TensorList, weights: TensorList, count: Tensor | int) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - kept)
            else:
                average.copy_(weight)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
