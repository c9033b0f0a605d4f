"""How all reads of one layout run: a launch and, where it fills parts of a result, the launch that joins them."""

from typing import Any

import torch
from torch import Tensor

from stm_fast.kernels.combine import plan_combine
from stm_fast.kernels.compiled_launch import AnyLaunch, CompiledLaunch

_ALIGNMENT = 4  # floats: where the lse of the parts starts, 16 bytes


class ReadPlan:
    """What is launched for a layout, compiled, and the sizes of what it fills."""

    def __init__(
        self, part_out: Tensor, part_lse: Tensor, launch: AnyLaunch, dtype: torch.dtype, dependent: bool = False
    ) -> None:
        """Of outputs [B, S, M, Cv] and [B, S, M] and the launch that fills them; out is to have `dtype`."""
        batch, splits, queries, value_dim = part_out.shape
        self._device = part_out.device
        self._out_shape, self._lse_shape = (batch, queries, value_dim), (batch, queries)
        self._launch = CompiledLaunch(launch)
        self._join: CompiledLaunch | None = None
        if splits > 1:
            self._part_sizes = [-(-part_out.numel() // _ALIGNMENT) * _ALIGNMENT, part_lse.numel()]
            self._join = CompiledLaunch(plan_combine(part_out, part_lse, dtype, dependent)[2])

    def read(self, value: Tensor, *tensors: Any) -> tuple[Tensor, Tensor]:
        """out [B, M, Cv] and lse [B, M]: `tensors` are the first arguments of the kernel, up to its outputs."""
        if self._device.type == "cuda" and torch.cuda.current_device() != self._device.index:
            with torch.cuda.device(self._device):
                return self.read(value, *tensors)
        out = value.new_empty(self._out_shape)
        lse = value.new_empty(self._lse_shape, dtype=torch.float32)
        if self._join is None:
            self._launch.run(*tensors, out, lse)
            return out, lse
        # one allocation for both: an allocation takes as long as a launch
        parts = value.new_empty(sum(self._part_sizes), dtype=torch.float32)
        part_out: Tensor | int
        part_lse: Tensor | int
        if self._launch.interpreted:
            part_out, part_lse = parts.split(self._part_sizes)
        else:
            part_out = parts.data_ptr()
            part_lse = part_out + 4 * self._part_sizes[0]
        self._launch.run(*tensors, part_out, part_lse)
        self._join.run(part_out, part_lse, out, lse)
        return out, lse
