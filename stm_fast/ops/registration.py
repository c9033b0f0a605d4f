"""The operators of the compiled engines: one schema, one fake kernel and one autograd rule for all of them.

Each engine <name> is a pair of operators, stm_fast::memory_read_<name> and stm_fast::memory_read_<name>_backward.
Schemas are defined only here; csrc/bindings.cpp and triton_ops.py only add implementations.
"""

from typing import Any

import torch
from torch import Tensor

from stm_fast.ops.inputs import (
    Reader,
    ReadInputs,
    ReadResult,
    Results,
    accumulation_dtype,
    in_transform,
    requires_grad,
)
from stm_fast.ops.reference import kept_weights
from stm_fast.torch_private import below_autograd, in_forward_mode

# top_k = 0 is the dense read; results that were not requested, and the gradients of absent inputs, are empty tensors
_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor? shrinkage, Tensor? selection, Tensor? lengths"
_OPTIONS = "float scale, int similarity, bool query_norm, int top_k"
_FORWARD = (
    f"({_TENSORS}, {_OPTIONS}, bool return_usage, bool return_top_k)"
    " -> (Tensor out, Tensor lse, Tensor usage, Tensor weights, Tensor rows)"
)
_BACKWARD = (
    f"(Tensor grad_out, Tensor grad_lse, Tensor out, Tensor lse, {_TENSORS}, {_OPTIONS})"
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

    def backward_rule(ctx: Any, grad_out: Tensor, grad_lse: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
        operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}_backward")
        # a second access would unpack them again, which a checkpoint rejects and save_on_cpu() turns into a second copy
        out, lse, *tensors = ctx.saved_tensors
        gradients = operator(grad_out, grad_lse, out, lse, *tensors, *ctx.options)
        given = [None if tensor is None else found for tensor, found in zip(tensors, gradients, strict=False)]
        return *given, None, *[None] * 6  # lengths, options

    torch.library.register_autograd(forward, backward_rule, setup_context=_setup_context)
    torch.library.register_autograd(backward, no_second_derivative)


def transform_reasons() -> list[str]:
    """Why no registered operator can run here: torch.func does not know their autograd rule."""
    if in_transform():
        return ["it does not run under torch.func transforms (vmap, grad, jvp)"]
    return forward_mode_reasons()


def forward_mode_reasons() -> list[str]:
    """Why no registered operator can run here: PyTorch silently drops their tangents."""
    if torch.compiler.is_compiling() or not in_forward_mode():
        return []
    return ["it has no forward-mode derivative"]


def call_engine(engine: str, inputs: ReadInputs) -> ReadResult:
    """Runs one engine's forward operator (and, through autograd, its backward)."""
    operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}")
    result = _requested(inputs.return_usage, inputs.return_top_k, *operator(*inputs.tensors, *inputs.options))
    if result.rows is None or not requires_grad(inputs.score_tensors):
        return result
    return result._replace(weights=kept_weights(inputs, result.rows))


def engine_reader(engine: str, inputs: ReadInputs) -> Reader:
    """A reader that calls one engine's forward operator below autograd, which has nothing to record."""
    operator = getattr(torch.ops.stm_fast, f"memory_read_{engine}").default
    options, requested = inputs.options, (inputs.return_usage, inputs.return_top_k)

    def read(*tensors: Tensor | None) -> Results:
        with below_autograd():
            results = operator(*tensors, *options)
        return _requested(*requested, *results)

    return read


def _requested(
    return_usage: bool, return_top_k: bool, out: Tensor, lse: Tensor, usage: Tensor, weights: Tensor, rows: Tensor
) -> ReadResult:
    """The results of an operator without the empty tensors that stand for those that were not requested."""
    return ReadResult(out, lse, usage if return_usage else None, *((weights, rows) if return_top_k else ()))


def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    inputs = ReadInputs(*arguments)
    value, queries = inputs.value, inputs.query.shape[1]
    (batch, rows, value_dim), dtype = value.shape, accumulation_dtype(value.dtype)
    kept = (batch, queries, inputs.top_k) if inputs.return_top_k else (0,)
    return (
        value.new_empty(batch, queries, value_dim),
        value.new_empty(batch, queries, dtype=dtype),
        value.new_empty((batch, rows) if inputs.return_usage else (0,), dtype=dtype),
        value.new_empty(kept, dtype=dtype),
        value.new_empty(kept, dtype=torch.int64),
    )


def _fake_backward(
    _grad_out: Tensor, _grad_lse: Tensor, _out: Tensor, _lse: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    # contiguous for any strides of the inputs, as the engines allocate them
    query = arguments[0]
    return tuple(query.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in arguments[:5])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, options = inputs[:6], inputs[6:10]
    out, lse, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(out, lse, *tensors)
    ctx.options = options


def no_second_derivative(_ctx: Any, *_grads: Tensor) -> None:
    """The autograd rule of a backward operator: raises NotImplementedError."""
    raise NotImplementedError(
        'memory read: found a second derivative, expected at most a first; backend="reference" has every order'
    )
