"""The Triton engine: custom operators around stm_fast.kernels, and the inputs that they do not support.

Triton is imported when the first read runs, so that importing stm_fast stays quick and works without it.
"""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from stm_fast.choices import SIMILARITIES
from stm_fast.errors import InputError
from stm_fast.kernels.configs import WIDEST_KEY
from stm_fast.kernels.targets import ARCHITECTURES
from stm_fast.ops.inputs import Reader, ReadInputs, ReadResult, Results, Tensors
from stm_fast.ops.registration import call_engine, engine_reader, register_engine, transform_reasons

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_OBJECTS = 65535  # the limit of the third dimension of a launch grid

_INSTALLED = importlib.util.find_spec("triton") is not None
# for tests: Triton's interpreter runs kernels on the CPU, in NumPy
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if _INTERPRETED else "cuda"

register_engine("triton")


def absent_reasons() -> list[str]:
    if not _INSTALLED:
        return ["Triton is not installed"]
    if not _INTERPRETED and not torch.cuda.is_available():
        return ["there is no CUDA device"]
    return []


def unsupported_reasons(inputs: ReadInputs) -> list[str]:
    query, reasons = inputs.query, tensor_reasons(inputs.value)
    if query.dtype == torch.bfloat16 and _INTERPRETED:
        reasons.append("Triton's interpreter cannot multiply torch.bfloat16")
    if query.shape[2] > WIDEST_KEY:
        reasons.append(f"it takes keys of at most {WIDEST_KEY} channels, found {query.shape[2]}")
    if inputs.top_k and _capturing(query):
        reasons.append("its top_k waits for the device, which a CUDA graph cannot record")
    return reasons or _similarity_reasons(inputs.similarity)


def tensor_reasons(value: Tensor) -> list[str]:
    """Why no kernel can read values with the device, dtype and batch of this tensor."""
    reasons = [*transform_reasons(), *device_reasons(value.device)]
    if value.dtype not in DTYPES:
        reasons.append(f"it has no kernel for {value.dtype}")
    if value.shape[0] > MOST_OBJECTS:
        reasons.append(f"it takes a batch of at most {MOST_OBJECTS}, found {value.shape[0]}")
    return reasons


def _similarity_reasons(similarity: int) -> list[str]:
    from stm_fast.kernels.similarity import KINDS

    return [] if similarity in KINDS else [f"it has no kernel for similarity {SIMILARITIES[similarity]!r}"]


def device_reasons(device: torch.device) -> list[str]:
    """Why no Triton kernel can run on a device."""
    if device.type != DEVICE:
        return [f"it runs on {DEVICE} tensors only, found {device.type}"]
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major * 10 + minor < ARCHITECTURES[0]:
            return [f"it needs compute capability {ARCHITECTURES[0] / 10}, found {major}.{minor}"]
    return []


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a device current, because Triton launches on the current one and not on that of its arguments."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


def read(inputs: ReadInputs) -> ReadResult:
    return call_engine("triton", inputs)


def reader(inputs: ReadInputs) -> Reader | None:
    if inputs.top_k:
        return None  # whether it is captured has to be asked each time
    if inputs.return_usage:
        return engine_reader("triton", inputs)
    from stm_fast.kernels.forward import forward_plan
    from stm_fast.kernels.layout import row_copies
    from stm_fast.kernels.similarity import half_norms

    device = inputs.value.device
    with current_device(device):
        problem = problem_of(inputs)
        copies = row_copies(problem)
        plan = forward_plan(problem._replace(**{name: copy.empty() for name, copy in copies.items()}))
    has_norms = problem.norms is not None
    places = [(problem._fields.index(name), copy) for name, copy in copies.items()]
    wants_lse = inputs.return_lse

    def read(*tensors: *Tensors) -> Results:
        operands = [*tensors, half_norms(tensors[0], tensors[4]) if has_norms else None]
        for place, copy in places:
            operands[place] = copy.run(operands[place])
        out, lse = plan.read(*operands) if wants_lse else (plan.read_out(*operands), None)
        return out, lse, None, None, None

    if device.type != "cuda":
        return read
    index = device.index

    def read_on_its_device(*tensors: *Tensors) -> Results:
        if torch.cuda.current_device() == index:
            return read(*tensors)
        with torch.cuda.device(index):
            return read(*tensors)

    return read_on_its_device


@torch.library.impl("stm_fast::memory_read_triton", DEVICE)
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    from stm_fast.kernels.forward import forward
    from stm_fast.kernels.layout import laid_out
    from stm_fast.kernels.topk import topk_forward
    from stm_fast.kernels.usage import usage

    inputs = ReadInputs(*arguments)
    with current_device(inputs.value.device):
        problem = laid_out(problem_of(inputs))
        if 0 < inputs.top_k < inputs.key.shape[1]:
            read = topk_forward(problem, inputs.top_k, inputs.return_usage)
            kept = read.affinity.by_row() if inputs.return_top_k else _no_entries(read.out)
            return read.out, read.affinity.lse, _no_sums(read.out) if read.usage is None else read.usage, *kept
        out, lse = forward(problem)
        return out, lse, usage(problem, lse) if inputs.return_usage else _no_sums(out), *_no_entries(out)


# results of an operator must not share memory


def _no_sums(out: Tensor) -> Tensor:
    return out.new_empty(0, dtype=torch.float32)


def _no_entries(out: Tensor) -> tuple[Tensor, Tensor]:
    return _no_sums(out), out.new_empty(0, dtype=torch.int64)


@torch.library.impl("stm_fast::memory_read_triton_backward", DEVICE)
def _backward(grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    from stm_fast.kernels.backward import backward
    from stm_fast.kernels.layout import laid_out
    from stm_fast.kernels.topk_backward import topk_backward

    inputs = ReadInputs(*arguments)
    with current_device(inputs.value.device):
        problem = laid_out(problem_of(inputs))
        if 0 < inputs.top_k < inputs.key.shape[1]:
            gradients = topk_backward(problem, inputs.top_k, grad_out, grad_lse)
        else:
            gradients = backward(problem, grad_out, grad_lse, out, lse)
    return tuple(inputs.query.new_empty(0) if gradient is None else gradient for gradient in gradients)


def problem_of(inputs: ReadInputs) -> Any:
    """The read as the kernels see it."""
    from stm_fast.kernels.launch import arithmetic_of
    from stm_fast.kernels.problem import Problem
    from stm_fast.kernels.similarity import half_norms
    from stm_fast.kernels.targets import target_of
    from stm_fast.kernels.tuned import check_table

    is_l2 = SIMILARITIES[inputs.similarity] == "l2"
    norms = half_norms(inputs.query, inputs.selection) if is_l2 and inputs.query_norm else None
    target, arithmetic = target_of(inputs.query.device), arithmetic_of(inputs.value.dtype)
    try:
        check_table(target.architecture)
    except ValueError as error:
        raise InputError(str(error)) from None
    return Problem(*inputs.tensors, inputs.scale, inputs.similarity, norms, target, arithmetic)
