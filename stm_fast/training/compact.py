"""Compresses a run's state to six bytes per weight instead of sixteen, for checkpoints that are copied often.

The number of steps, norms, scales and all other vectors are exact. For each convolution kernel and its moments in Adam,
the compact state has

* the moving average of the weights in float16, as `stm-fast convert --half` stores weights. It is the entry "model",
  from which the weights of a checkpoint are loaded;
* the difference of the weights from that average, in float16: an error of at most 2^-11 of the difference;
* the square root of Adam's second moment, in 8 bits on a logarithmic scale: an error of at most 4 %;
* the first moment divided by that root, in 8 bits on a linear scale.

Without a moving average, the weights are float32, which takes the same space.
"""

from typing import Any

import torch
from torch import Tensor

# of the names of weights in torch's `AveragedModel`
_PREFIX = "module."
# codes on the logarithmic scale; code 0 means 0
_CODES = 254
# range of the logarithmic scale; smaller roots are rounded up, which makes steps smaller
_OCTAVES = 24.0
_MOMENTS = ("exp_avg", "exp_avg_sq")

State = dict[str, Any]


def pack(state: State) -> State:
    """The compact form of a state that contains a `Learner.state`."""
    packed = state | {"optimizer": _each_weight(state["optimizer"], _pack_moments)}
    weights, average = state["model"], state["average"]
    if average is None:
        return packed
    averages = {name: average[_PREFIX + name] for name in weights}
    model = {name: tensor.half() if _is_kernel(tensor) else tensor for name, tensor in averages.items()}
    difference = {
        name: (tensor - model[name].float()).half() if _is_kernel(tensor) else tensor
        for name, tensor in weights.items()
    }
    rest = {name: tensor for name, tensor in average.items() if name.removeprefix(_PREFIX) not in weights}
    return packed | {"model": model, "difference": difference, "average": rest}


def unpack(state: State) -> State:
    """The inverse of `pack`."""
    unpacked = state | {"optimizer": _each_weight(state["optimizer"], _unpack_moments)}
    if state["average"] is None:
        return unpacked
    model = {name: tensor.float() if _is_kernel(tensor) else tensor for name, tensor in state["model"].items()}
    weights = {
        name: model[name] + tensor.float() if _is_kernel(tensor) else tensor
        for name, tensor in unpacked.pop("difference").items()
    }
    average = {_PREFIX + name: tensor for name, tensor in model.items()}
    return unpacked | {"model": weights, "average": average | state["average"]}


def _is_kernel(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


def _each_weight(optimizer: State, change: Any) -> State:
    return optimizer | {"state": {number: change(of_weight) for number, of_weight in optimizer["state"].items()}}


def _pack_moments(of_weight: State) -> State:
    first, second = (of_weight[name] for name in _MOMENTS)
    if not _is_kernel(first):
        return of_weight
    root = second.sqrt()
    largest = root.max().clamp_min(torch.finfo(root.dtype).tiny).log2()
    place = ((root.log2() - largest) / _OCTAVES + 1).clamp(0, 1)  # 0 to 1
    codes = torch.where(root > 0, 1 + (_CODES * place).round(), 0).to(torch.uint8)
    step = (first / _root(codes, largest)).nan_to_num(0, 0, 0)
    most = step.abs().max().clamp_min(torch.finfo(step.dtype).tiny)
    rest = {name: value for name, value in of_weight.items() if name not in _MOMENTS}
    return rest | {
        "step_codes": (step / most * 127).round().to(torch.int8),
        "step_most": most,
        "root_codes": codes,
        "root_largest": largest,
    }


def _unpack_moments(of_weight: State) -> State:
    if "root_codes" not in of_weight:
        return of_weight
    rest = dict(of_weight)
    root = _root(rest.pop("root_codes"), rest.pop("root_largest"))
    step = rest.pop("step_codes").to(root.dtype) / 127 * rest.pop("step_most")
    return rest | {"exp_avg": step * root, "exp_avg_sq": root.square()}


def _root(codes: Tensor, largest: Tensor) -> Tensor:
    """Decodes the square root of a second moment."""
    place = (codes.to(largest.dtype) - 1) / _CODES
    return torch.where(codes > 0, (largest + _OCTAVES * (place - 1)).exp2(), 0)
