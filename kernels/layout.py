"""In which layout the kernels get a read's tensors: contiguous, aligned rows wherever that is worth a copy.

Networks make queries, keys and values channels first, and users hand them over as views. A tile reads such a tensor
two bytes at a time, without asynchronous copies, and takes a multiple of the time. Only here is decided what is copied.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.compiled_launch import CompiledLaunch, blank
from stm_fast.kernels.configs import ROWS, is_regular
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.operands import load_tile, steps
from stm_fast.kernels.plans import Plans, layout_of
from stm_fast.kernels.problem import Problem, has_rows
from stm_fast.kernels.tiles import ceil_div

# a copy is estimated to take the time of 80 queries read in place (README.md), two launches that of 10^5 scores or more
FEWEST_QUERIES = 96
FEWEST_SCORES = 2**19
LARGEST_TILE = 128  # rows


class RowCopy:
    """Copies any tensor of one layout to contiguous rows."""

    def __init__(self, source: Tensor) -> None:
        self._shape = source.shape
        self._is_shared = source.stride(0) == 0
        target, launch = plan_rows(source[:1] if self._is_shared else source)
        self._target, self._launch = blank(target, target.shape), CompiledLaunch(launch)

    def empty(self) -> Tensor:
        """What run() gives, with nothing in it."""
        return self._for_all(torch.empty_like(self._target))

    def run(self, source: Tensor) -> Tensor:
        target = torch.empty_like(self._target)
        self._launch.run(source, target)
        return self._for_all(target)

    def _for_all(self, target: Tensor) -> Tensor:
        """All objects share the copy where they share the source."""
        return target.expand(self._shape) if self._is_shared else target


_COPIES: Plans[RowCopy] = Plans()


def row_copy(tensor: Tensor) -> RowCopy:
    """What copies tensors of this one's layout."""
    layout = layout_of(tensor)
    return _COPIES.get(layout) or _COPIES.keep(layout, RowCopy(tensor))


def laid_out(problem: Problem) -> Problem:
    """The same read, of copies where `copied` says so; as it is where it comes from here."""
    copies: dict[str, Any] = {name: with_rows(getattr(problem, name)) for name in copied(problem)}
    return problem._replace(**copies)


def row_copies(problem: Problem) -> dict[str, RowCopy]:
    """What laid_out() copies the tensors of this and every other problem of its layout with, by name."""
    return {name: row_copy(getattr(problem, name)) for name in copied(problem)}


def copied(problem: Problem) -> list[str]:
    """Which of a problem's tensors are copied, from shapes, strides and alignment alone.

    The query and its selection, small beside the memory, always; keys and values where there are queries and scores
    enough; none where the widths leave no tile that would want rows, but for tensors that are not addressable().
    """
    key, value = problem.key, problem.value
    strided = [name for name in ("query", "selection", "key", "value") if not _is_laid_out(getattr(problem, name))]
    if not is_regular(key.shape[2], value.shape[2]):
        return [name for name in strided if not addressable(getattr(problem, name))]
    queries = problem.query.shape[1]
    if queries >= FEWEST_QUERIES and value.shape[0] * queries * key.shape[1] >= FEWEST_SCORES:
        return strided
    return [name for name in strided if name in ("query", "selection") or not addressable(getattr(problem, name))]


def _is_laid_out(tensor: Tensor | None) -> bool:
    return tensor is None or has_rows(tensor)


def addressable(tensor: Tensor) -> bool:
    """Whether 32-bit offsets reach all of a tile of LARGEST_TILE rows of [B, N, C].

    Tiles are placed by 64-bit arithmetic and addressed inside by 32-bit offsets. Only views with a stride beyond some
    millions (channels first over a memory of that many rows) do not fit.
    """
    return LARGEST_TILE * tensor.stride(1) + tensor.shape[2] * tensor.stride(2) < 2**31


def with_rows(tensor: Tensor) -> Tensor:
    """A copy of [B, N, C] with rows contiguous, one of all objects where they share it."""
    return row_copy(tensor).run(tensor)


def plan_rows(source: Tensor) -> tuple[Tensor, Launch]:
    """The contiguous [B, N, C], and the launch that copies the source to it; PyTorch's own copy is slow (README.md)."""
    batch, rows, width = source.shape
    target = source.new_empty(source.shape)
    grid = (ceil_div(rows, ROWS.rows), ceil_div(width, ROWS.columns), batch)
    arguments = {"source": source, "target": target, "N": rows, "C": width, "strides": steps(source)}
    return target, Launch.of(_rows_kernel, grid, ROWS, **arguments)


@triton.jit
def _rows_kernel(source, target, N, C, strides, TILE: tl.constexpr):
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * TILE.rows + tl.arange(0, TILE.rows)
    c = tl.program_id(1).to(tl.int64) * TILE.columns + tl.arange(0, TILE.columns)
    mask = (n < N)[:, None] & (c < C)[None, :]
    tile = load_tile(source + b * strides[0], strides, n[:, None], c[None, :], mask)
    tl.store(target + (b * N + n)[:, None] * C + c[None, :], tile, mask=mask)
