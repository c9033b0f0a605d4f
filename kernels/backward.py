"""The gradients of the memory read: the affinity is made again, a block of memory rows at a time, from the saved lse.

The mathematics and the symbols are in README.md.
"""

from typing import NamedTuple

from torch import Tensor

from stm_fast.kernels.delta import plan_delta
from stm_fast.kernels.grad_key import plan_grad_key
from stm_fast.kernels.grad_query import new_query_sums, plan_grad_query
from stm_fast.kernels.grad_scores import plan_grad_scores, rows_of_a_block
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
    grad_key = problem.key.new_empty(problem.key.shape)
    grad_value = problem.value.new_empty(problem.value.shape)
    grad_shrinkage = None if problem.shrinkage is None else problem.shrinkage.new_empty(problem.value.shape[:2])
    rows, most = problem.value.shape[1], rows_of_a_block(problem)
    sums = new_query_sums(problem, most)
    for first in range(0, rows, most):
        block, of_tiles, launch = plan_grad_scores(
            problem, grad_out, lse, totals, delta, first, min(most, rows - first)
        )
        launch.run()
        if grad_shrinkage is not None and of_tiles is not None:
            grad_shrinkage[:, first : first + block.rows] = of_tiles.sum(0)[:, : block.rows]
        plan_grad_value(problem, block, grad_out, grad_value).run()
        plan_grad_key(problem, block, grad_key).run()
        plan_grad_query(problem, block, sums).run()
    grad_query, grad_selection = sums.gradients(problem)
    if grad_shrinkage is not None and problem.shrinkage is not None:
        # one shrinkage for all objects takes the sum of theirs
        grad_shrinkage = grad_shrinkage.sum_to_size(problem.shrinkage.shape)
    return Gradients(grad_query, grad_key, grad_value, grad_shrinkage, grad_selection)
