"""One schema, one fake kernel and one autograd rule for the memory read of every compiled engine.

Each engine <name> is a pair of operators, stm_fast::memory_read_<name> and stm_fast::memory_read_<name>_backward.
The schemas are defined here alone; csrc/bindings.cpp and triton_ops.py only add implementations.
"""

from typing import Any

import torch
from torch import Tensor

from stm_fast.ops.inputs import Reader, ReadInputs, ReadResult, accumulation_dtype, in_transform

# top_k = 0 is the dense read; usage and the gradients of absent inputs are empty tensors
_OPTIONS = "float scale, bool l2, bool query_norm, int top_k"
_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor? shrinkage, Tensor? selection, Tensor? lengths"
_FORWARD = f"({_TENSORS}, {_OPTIONS}, bool return_usage) -> (Tensor out, Tensor lse, Tensor usage)"
_BACKWARD = (
    f"(Tensor grad_out, Tensor grad_lse, {_TENSORS}, Tensor out, Tensor lse, {_OPTIONS})"
    " -> (Tensor query, Tensor key, Tensor value, Tensor shrinkage, Tensor selection)"
)


def register_engine(engine: str) -> None:
    """Defines the operator pair of one engine, with its fake kernels and its autograd rule."""
    forward, backward = f"stm_fast::memory_read_{engine}", f"stm_fast::memory_read_{engine}_backward"
    tags = (torch.Tag.pt2_compliant_tag,)
    torch.library.define(forward, _FORWARD, tags=tags)
    torch.library.define(backward, _BACKWARD, tags=tags)
    torch.library.register_fake(forward, _fake_forward)
    torch.library.register_fake(backward, _fake_backward)

    def backward_rule(ctx: Any, grad_out: Tensor, grad_lse: Tensor, _grad_usage: Tensor | None) -> tuple[Any, ...]:
        operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}_backward")
        # looked at once: each look unpacks them again, which a checkpoint refuses and save_on_cpu() copies for
        tensors = ctx.saved_tensors
        query, key, value, shrinkage, selection = operator(grad_out, grad_lse, *tensors, *ctx.options)
        has_shrinkage, has_selection = (tensor is not None for tensor in tensors[3:5])
        optional = (shrinkage if has_shrinkage else None, selection if has_selection else None)
        return query, key, value, *optional, None, None, None, None, None, None

    torch.library.register_autograd(forward, backward_rule, setup_context=_setup_context)
    torch.library.register_autograd(backward, _no_second_derivative)


def transform_reasons() -> list[str]:
    """Why no registered operator can run here: torch.func does not know their autograd rule."""
    if in_transform():
        return ["it does not run under torch.func transforms (vmap, grad, jvp)"]
    return forward_mode_reasons()


def forward_mode_reasons() -> list[str]:
    """Why no registered operator can run here: PyTorch leaves out their tangents without a word."""
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level < 0:
        return []
    return ["it has no forward-mode derivative"]


def call_engine(engine: str, inputs: ReadInputs) -> ReadResult:
    """Runs one engine's forward operator (and, through autograd, its backward)."""
    operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}")
    out, lse, usage = operator(*inputs.tensors, *_options(inputs))
    return ReadResult(out, lse, usage if inputs.return_usage else None)


def engine_reader(engine: str, inputs: ReadInputs) -> Reader:
    """Runs one engine's forward operator beneath autograd, which would only pass it on."""
    operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}").default
    options, return_usage = _options(inputs), inputs.return_usage

    def read(*tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse, usage = operator(*tensors, *options)
        return out, lse, usage if return_usage else None

    return read


def _options(inputs: ReadInputs) -> tuple[float, bool, bool, int, bool]:
    return inputs.scale, inputs.similarity == "l2", inputs.query_norm, inputs.top_k, inputs.return_usage


def _fake_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shrinkage: Tensor | None,
    selection: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    l2: bool,
    query_norm: bool,
    top_k: int,
    return_usage: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, value_dim = value.shape
    queries, dtype = query.shape[1], accumulation_dtype(value.dtype)
    return (
        value.new_empty(batch, queries, value_dim),
        value.new_empty(batch, queries, dtype=dtype),
        value.new_empty((batch, rows) if return_usage else (0,), dtype=dtype),
    )


def _fake_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shrinkage: Tensor | None,
    selection: Tensor | None,
    *_rest: Any,
) -> tuple[Tensor, ...]:
    # contiguous whatever the strides of the inputs: that is what the engines allocate
    inputs = (query, key, value, shrinkage, selection)
    return tuple(query.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, options = inputs[:6], inputs[6:10]
    out, lse, usage = output
    ctx.mark_non_differentiable(usage)
    ctx.save_for_backward(*tensors, out, lse)
    ctx.options = options


def _no_second_derivative(_ctx: Any, *_grads: Tensor) -> None:
    raise NotImplementedError(
        'memory_read: found a second derivative, expected at most a first; backend="reference" has every order'
    )
