"""How all reads of one layout run: a launch and, where it fills parts of a result, the launch that joins them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.compiled_launch import CompiledLaunch, blank
from stm_fast.kernels.launch import AnyLaunch

_ALIGNED = 4  # floats are 16 bytes: the lse of the parts starts at a multiple


class ReadPlan:
    """What is launched for one layout, compiled, and what it fills."""

    def __init__(
        self,
        part_out: Tensor,
        part_lse: Tensor,
        launch: AnyLaunch,
        dtype: torch.dtype,
        dependent: bool = False,
        operands: Callable[..., Sequence[Any]] | None = None,
    ) -> None:
        """Of the outputs [B, S, M, Cv] and [B, S, M] of a launch, of the layout of all others; out is of `dtype`.

        operands: what the kernel takes in place of the tensors of a read, where it does not take themselves.
        """
        self._operands = operands
        batch, splits, queries, value_dim = part_out.shape
        self._out = blank(part_out, [batch, queries, value_dim], dtype)
        self._lse = blank(part_lse, [batch, queries])
        self._launch = CompiledLaunch(launch)
        self._join: CompiledLaunch | None = None
        if splits > 1:
            self._lse_start = -(-part_out.numel() // _ALIGNED) * _ALIGNED
            self._parts = blank(part_lse, [self._lse_start + part_lse.numel()])
            self._join = CompiledLaunch(plan_combine(part_out, part_lse, dtype, dependent)[2])

    def read(self, *tensors: Any) -> tuple[Tensor, Tensor]:
        """out [B, M, Cv] and lse [B, M]; `tensors` are those of a Problem."""
        if self._operands is not None:
            tensors = tuple(self._operands(*tensors))
        out, lse = torch.empty_like(self._out), torch.empty_like(self._lse)
        if self._join is None:
            self._launch.run(*tensors, out, lse)
            return out, lse
        parts = torch.empty_like(self._parts)  # one for both
        part_out: Tensor | int
        part_lse: Tensor | int
        if self._launch.interpreted:
            part_out, part_lse = parts[: self._lse_start], parts[self._lse_start :]
        else:
            part_out = parts.data_ptr()
            part_lse = part_out + self._lse_start * parts.itemsize
        self._launch.run(*tensors, part_out, part_lse)
        self._join.run(part_out, part_lse, out, lse)
        return out, lse
