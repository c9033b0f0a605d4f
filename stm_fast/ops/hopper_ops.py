"""The Hopper engine: a custom operator around stm_fast.kernels.forward_hopper, and what it does not cover.

It runs on request only (backend="hopper"): it was compiled and simulated, and no GPU has run it yet.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from stm_fast.kernels.configs_hopper import ARCHITECTURE, hopper_reasons
from stm_fast.ops.inputs import ReadInputs, ReadResult
from stm_fast.ops.registration import call_engine, register_engine
from stm_fast.ops.triton_ops import MOST_OBJECTS, current_device

_INSTALLED = importlib.util.find_spec("triton") is not None

register_engine("hopper")


def absent_reasons() -> list[str]:
    if not _INSTALLED:
        return ["Triton is not installed"]
    if not torch.cuda.is_available():
        return ["there is no CUDA device"]
    major, minor = torch.cuda.get_device_capability()
    if major * 10 + minor != ARCHITECTURE:
        return [f"it needs compute capability 9.0, found {major}.{minor}"]
    return _gluon_reasons()


def _gluon_reasons() -> list[str]:
    """Gluon is experimental: a Triton that has moved its names leaves the portable kernels."""
    try:
        import stm_fast.kernels.forward_hopper  # noqa: F401
    except ImportError as error:
        return [f"this Triton has another Gluon: {error}"]
    return []


def not_supported_reasons(inputs: ReadInputs) -> list[str]:
    reasons: list[str] = hopper_reasons(inputs.query, inputs.key, inputs.value)
    if inputs.query.device.type != "cuda":
        reasons.append(f"it runs on cuda tensors only, found {inputs.query.device.type}")
    if inputs.value.shape[0] > MOST_OBJECTS:
        reasons.append(f"it takes a batch of at most {MOST_OBJECTS}, found {inputs.value.shape[0]}")
    if inputs.similarity != "dot":
        reasons.append(f'it reads with similarity "dot" only, found {inputs.similarity!r}')
    if inputs.top_k:
        reasons.append("it has no top_k")
    if inputs.return_usage:
        reasons.append("it has no return_usage")
    if inputs.requires_grad():
        reasons.append("it has no backward")
    return reasons


def read(inputs: ReadInputs) -> ReadResult:
    return call_engine("hopper", inputs)


@torch.library.impl("stm_fast::memory_read_hopper", "cuda")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shrinkage: Tensor | None,
    selection: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    *_options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    from stm_fast.kernels.forward_hopper import forward_hopper

    with current_device(value.device):
        out, lse = forward_hopper(query, key, value, lengths, scale)
    return out, lse, lse.new_empty(0)
