"""delta_i = <dO_i, O_i> - dlse_i: what the softmax takes from every gradient of its weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm_fast.kernels.configs import DELTA
from stm_fast.kernels.launch import Launch
from stm_fast.kernels.tiles import ceil_div


def plan_delta(grad_out: Tensor, grad_lse: Tensor, out: Tensor) -> tuple[Tensor, Launch]:
    """delta [B, M] float32 of grad_out and out [B, M, Cv] and grad_lse [B, M], and the launch; all contiguous."""
    batch, queries, value_dim = out.shape
    delta = out.new_empty(batch, queries, dtype=torch.float32)
    grid = (ceil_div(queries, DELTA.rows), 1, batch)
    tensors = {"grad_out": grad_out, "grad_lse": grad_lse, "out": out, "delta": delta}
    return delta, Launch.of(_delta_kernel, grid, DELTA, **tensors, M=queries, CV=value_dim)


@triton.jit
def _delta_kernel(grad_out, grad_lse, out, delta, M, CV: tl.constexpr, TILE: tl.constexpr):
    b = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0).to(tl.int64) * TILE.rows + tl.arange(0, TILE.rows)
    total = -tl.load(grad_lse + b * M + m, mask=m < M, other=0.0).to(tl.float32)
    for first in range(0, CV, TILE.columns):
        v = first + tl.arange(0, TILE.columns)
        mask = (m < M)[:, None] & (v < CV)[None, :]
        offsets = (b * M + m)[:, None] * CV + v[None, :]
        grad_tile = tl.load(grad_out + offsets, mask=mask, other=0.0).to(tl.float32)
        out_tile = tl.load(out + offsets, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(grad_tile * out_tile, 1)
    tl.store(delta + b * M + m, total, mask=m < M)
