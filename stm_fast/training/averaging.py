"""Moving average of the weights, which scores better and varies less than the weights themselves."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

# the types that torch passes to `multi_avg_fn`
TensorList = tuple[Tensor, ...] | list[Tensor]


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of parameters and buffers.

    The decay of update n is ``min(decay, (1 + n) / (10 + n))``, so that the initial weights are soon forgotten.
    """

    @torch.no_grad()
    def update(averages: TensorList, weights: TensorList, count: Tensor | int) -> None:
        current = min(decay, (1 + int(count)) / (10 + int(count)))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - current)
            else:
                average.copy_(weight)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
