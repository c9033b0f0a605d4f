"""How all reads of one layout run: a launch and, where it fills parts of a result, the launch that joins them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.compiled_launch import CompiledLaunch, blank
from stm_fast.kernels.launch import AnyLaunch
from stm_fast.kernels.operands import Operands

_ALIGNED = 4  # floats are 16 bytes: what shares a tensor starts at a multiple


class ReadPlan:
    """What is launched for one layout, compiled, and what it fills."""

    def __init__(self, part_out: Tensor, part_lse: Tensor, launch: AnyLaunch, dtype: torch.dtype) -> None:
        """Of the outputs [B, S, M, Cv] and [B, S, M] of a launch, of the layout of all others; out is of `dtype`."""
        batch, splits, queries, value_dim = part_out.shape
        self._out = blank(part_out, [batch, queries, value_dim], dtype)
        self._lse = blank(part_lse, [batch, queries])
        self._launch = CompiledLaunch(launch)
        # a compiled kernel takes any tuple of them
        self._operands = launch.operands() or (_named if self._launch.interpreted else None)
        self._join: CompiledLaunch | None = None
        if splits > 1:
            # one tensor for the out and the lse of all parts, and for the lse of the whole where nobody wants it
            self._starts = _starts(part_out.numel(), part_lse.numel(), batch * queries)
            self._parts = blank(part_lse, [self._starts[-1]])
            self._join = CompiledLaunch(plan_combine(part_out, part_lse, dtype)[2])

    def read(self, *tensors: Any) -> tuple[Tensor, Tensor]:
        """out [B, M, Cv] and lse [B, M]; `tensors` are those of a Problem."""
        lse = torch.empty_like(self._lse)
        return self._filled(tensors, lse), lse

    def read_out(self, *tensors: Any) -> Tensor:
        """What read() gives but lse, which takes the host less time."""
        return self._filled(tensors, None)

    def _filled(self, tensors: Sequence[Any], lse: Any) -> Tensor:
        given = (tensors,) if self._operands is None else self._operands(*tensors)
        out = torch.empty_like(self._out)
        if self._join is None:
            self._launch.run(*given, out, torch.empty_like(self._lse) if lse is None else lse)
            return out
        parts = torch.empty_like(self._parts)
        part_out, part_lse, spare = self._slices(parts)
        self._launch.run(*given, part_out, part_lse)
        self._join.run(part_out, part_lse, out, spare if lse is None else lse)
        return out

    def _slices(self, parts: Tensor) -> Sequence[Any]:
        """The three of them, by their addresses where a launch takes these: they cost less than tensors."""
        first, second, _ = self._starts
        if self._launch.interpreted:
            return parts, parts[first:], parts[second:]
        address = parts.data_ptr()
        return address, address + first * parts.itemsize, address + second * parts.itemsize


def _named(*tensors: Any) -> tuple[Operands]:
    return (Operands(*tensors),)


def _starts(*sizes: int) -> list[int]:
    """The aligned offsets of tensors of these sizes, in floats, after the first, and the end of the last."""
    return list(accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes))
