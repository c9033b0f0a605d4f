"""Ways to pack, move or recompute autograd's saved tensors, and gradients to compare.

A way calls a function with arguments; WAYS lists PyTorch's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from stm_fast.testing import ReadCase, Tensors
from stm_fast.testing.runs import read_outputs

Function = Callable[..., tuple[Tensor, ...]]
Way = Callable[..., tuple[Tensor, ...]]


def plainly(function: Function, *arguments: Any) -> tuple[Tensor, ...]:
    return function(*arguments)


def within(hooks: Callable[[], Any]) -> Way:
    def call(function: Function, *arguments: Any) -> tuple[Tensor, ...]:
        with hooks():
            return function(*arguments)

    return call


def selectively(chosen: Any) -> Way:
    context_fn = partial(create_selective_checkpoint_contexts, chosen)
    return partial(checkpoint, use_reentrant=False, context_fn=context_fn)


def same(packed: Any) -> Any:
    return packed


READ_OPERATORS = [torch.ops.stm_fast.memory_read_triton.default, torch.ops.stm_fast.memory_read_cpp.default]
PRODUCTS = [torch.ops.aten.bmm.default, torch.ops.aten.mm.default, torch.ops.aten.convolution.default]


def keeps_reads(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in READ_OPERATORS else CheckpointPolicy.MUST_RECOMPUTE


def repeats_reads(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in PRODUCTS else CheckpointPolicy.MUST_RECOMPUTE


WAYS = {
    "checkpoint": partial(checkpoint, use_reentrant=False),
    "reentrant": partial(checkpoint, use_reentrant=True),
    "keeps reads": selectively(keeps_reads),
    "keeps listed reads": selectively(READ_OPERATORS),
    "repeats reads": selectively(repeats_reads),
    "save_on_cpu": within(save_on_cpu),
    "clones": within(partial(saved_tensors_hooks, torch.clone, same)),
}


def gradients(way: Way, function: Function, *inputs: Tensor | None, module: nn.Module | None = None) -> list[Tensor]:
    """The gradient of every input and of the module's parameters."""
    given = [None if tensor is None else tensor.detach().requires_grad_() for tensor in inputs]
    wanted = [tensor for tensor in (*given, *(() if module is None else module.parameters())) if tensor is not None]
    for tensor in wanted:
        tensor.grad = None
    outputs = [output for output in way(function, *given) if output.requires_grad]
    generator = torch.Generator().manual_seed(1)
    # not torch.autograd.grad(), which a reentrant checkpoint refuses
    torch.autograd.backward(outputs, [torch.randn(out.shape, generator=generator).to(out) for out in outputs])
    found = [tensor.grad for tensor in wanted if tensor.grad is not None]
    assert len(found) == len(wanted)
    return found


def assert_same(found: list[Tensor], expected: list[Tensor], way: str) -> None:
    assert len(found) == len(expected)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(ours, theirs), f"{way}: gradient {index} differs by {(ours - theirs).abs().max()}"


def assert_every_way_is_the_same(function: Function, *inputs: Tensor, module: nn.Module | None = None) -> None:
    """Every way gives the gradients of a plain call, bit for bit."""
    expected = gradients(plainly, function, *inputs, module=module)
    for name, way in WAYS.items():
        assert_same(gradients(way, function, *inputs, module=module), expected, name)


def read_of(case: ReadCase, backend: str) -> Function:
    return lambda *tensors: tuple(read_outputs(case, Tensors(*tensors), backend).values())
