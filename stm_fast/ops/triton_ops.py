"""The Triton engine: custom operators around stm_fast.kernels, and what they do not cover.

Triton is imported when the first read runs, so that importing stm_fast stays quick and works without it.
"""

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from stm_fast.kernels.configs import WIDEST_KEY
from stm_fast.ops.inputs import ReadInputs, ReadResult
from stm_fast.ops.registration import call_engine, register_engine

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_OBJECTS = 65535  # a launch grid has no more in its third dimension

_INSTALLED = importlib.util.find_spec("triton") is not None
# Triton's interpreter, for tests: its kernels then run on the CPU, in NumPy
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DEVICE = "cpu" if _INTERPRETED else "cuda"

register_engine("triton")


def absent_reasons() -> list[str]:
    if not _INSTALLED:
        return ["Triton is not installed"]
    if not _INTERPRETED and not torch.cuda.is_available():
        return ["there is no CUDA device"]
    return []


def not_supported_reasons(inputs: ReadInputs) -> list[str]:
    query, reasons = inputs.query, []
    if query.device.type != _DEVICE:
        reasons.append(f"it runs on {_DEVICE} tensors only, found {query.device.type}")
    if query.dtype not in DTYPES:
        reasons.append(f"it has no kernel for {query.dtype}")
    if query.dtype == torch.bfloat16 and _INTERPRETED:
        reasons.append("Triton's interpreter cannot multiply torch.bfloat16")
    if query.shape[2] > WIDEST_KEY:
        reasons.append(f"it takes keys of at most {WIDEST_KEY} channels, found {query.shape[2]}")
    if inputs.value.shape[0] > MOST_OBJECTS:
        reasons.append(f"it takes a batch of at most {MOST_OBJECTS}, found {inputs.value.shape[0]}")
    if inputs.similarity != "dot":
        reasons.append(f"similarity {inputs.similarity!r} is not built yet")
    if inputs.top_k:
        reasons.append("top_k is not built yet")
    if inputs.return_usage:
        reasons.append("return_usage is not built yet")
    if inputs.requires_grad():
        reasons.append("the backward is not built yet")
    return reasons


def read(inputs: ReadInputs) -> ReadResult:
    return call_engine("triton", inputs)


@torch.library.impl("stm_fast::memory_read_triton", _DEVICE)
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
    from stm_fast.kernels.forward import forward

    out, lse = forward(query, key, value, lengths, scale)
    return out, lse, lse.new_empty(0)
