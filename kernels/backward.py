"""The gradients of the memory read: the affinity is made again, tile by tile, from the saved lse.

The mathematics and the symbols are in README.md.
"""

from typing import NamedTuple

from torch import Tensor

from stm_fast.kernels.delta import plan_delta
from stm_fast.kernels.grad_key import plan_grad_key
from stm_fast.kernels.grad_query import plan_grad_query
from stm_fast.kernels.grad_value import plan_grad_value
from stm_fast.kernels.problem import Problem
from stm_fast.kernels.row_totals import row_totals


class Gradients(NamedTuple):
    """Contiguous, each in the shape and dtype of its input; None for an absent input."""

    query: Tensor
    key: Tensor
    value: Tensor
    shrinkage: Tensor | None
    selection: Tensor | None


def backward(problem: Problem, grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor) -> Gradients:
    """The gradients of every input, from those of out [B, M, Cv] and lse [B, M] and from out and lse themselves."""
    grad_out, grad_lse, out, lse = (tensor.contiguous() for tensor in (grad_out, grad_lse, out, lse))
    delta, launch = plan_delta(grad_out, grad_lse, out)
    launch.run()
    totals = row_totals(problem, lse)
    grad_value, launch = plan_grad_value(problem, grad_out, lse, totals)
    launch.run()
    grad_key, grad_shrinkage, launch = plan_grad_key(problem, grad_out, lse, totals, delta)
    launch.run()
    grad_query, grad_selection, launch = plan_grad_query(problem, grad_out, lse, totals, delta)
    launch.run()
    if grad_shrinkage is not None and problem.shrinkage is not None:
        # one shrinkage for all objects takes the sum of theirs
        grad_shrinkage = grad_shrinkage.sum_to_size(problem.shrinkage.shape)
    return Gradients(grad_query, grad_key, grad_value, grad_shrinkage, grad_selection)
