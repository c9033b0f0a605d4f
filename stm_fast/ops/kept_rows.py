"""Reads by kept weights: any number of value stores share the scores of one top-k read."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm_fast.ops import cpp_ops, triton_ops
from stm_fast.ops.arguments import check_tensors
from stm_fast.ops.backends import Backend, choose, no_reasons
from stm_fast.ops.functional import COUNTS, FLOATS, cast_for_autocast
from stm_fast.ops.inputs import accumulation_dtype, in_transform, without_autocast
from stm_fast.ops.registration import no_second_derivative
from stm_fast.torch_private import is_fake

# gathered values are summed one block of queries at a time: 16 M float32 elements are 64 MiB
MOST_GATHERED = 2**24


def read_rows(weights: Tensor, rows: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """Reads values with the weights and rows of ``memory_read(..., return_top_k=True)``.

    ``out_i = sum_k weights_ik value[rows_ik]``: the read of STM (Oh et al., ICCV 2019, equation 1) over the rows that
    top_k kept, without computing scores again, for several value stores, or chunks of objects, that share an affinity.
    Differentiable in `weights` and `value`.

    Args:
        weights: ``[B or 1, M, k]``, any float dtype; summed in float32 (float64 for float64 values).
        rows: like `weights`, integers: the memory row of each weight, -1 for none. Values outside -1..N-1 raise on the
            CPU; on a GPU they count as -1, because checking them would stall the stream.
        value: ``[B, N, Cv]``, any strides. A batch of 1 in the others is one affinity for all objects.
        backend: as in memory_read().

    Returns:
        ``[B, M, Cv]`` in the dtype of value, or of autocast, as from memory_read().

    Raises:
        TypeError, ValueError: arguments whose dtypes, devices or shapes do not match, before any kernel runs.
        NotImplementedError: a named backend that cannot run these inputs, with its reasons.
    """
    check_tensors(weights=weights, rows=rows, value=value)
    _check(weights, rows, value)
    (value,) = cast_for_autocast(value)
    inputs = _Inputs(weights.to(accumulation_dtype(value.dtype)), _known_rows(rows, value.shape[1]), value)
    chosen = choose(backend, inputs, _BACKENDS, "read of kept rows")
    with without_autocast(value.device):
        return chosen.read(inputs)


class _Inputs(NamedTuple):
    """The checked arguments of one call."""

    weights: Tensor  # [B or 1, M, k], accumulation dtype
    rows: Tensor  # [B or 1, M, k] int64, -1 for none
    value: Tensor  # [B, N, Cv]


def _check(weights: Tensor, rows: Tensor, value: Tensor) -> None:
    found = f"weights {tuple(weights.shape)}, rows {tuple(rows.shape)}, value {tuple(value.shape)}"
    if weights.ndim != 3 or value.ndim != 3 or rows.shape != weights.shape:
        raise ValueError(f"weights, rows, value: found {found}, expected [B, M, k] twice and [B, N, Cv]")
    if weights.shape[0] not in (1, value.shape[0]):
        raise ValueError(f"weights: batch is neither 1 nor value's: {found}")
    for name, tensor in (("weights", weights), ("value", value)):
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name}: found {tensor.dtype}, expected one of {', '.join(map(str, FLOATS))}")
    if rows.dtype not in COUNTS:
        raise TypeError(f"rows: found {rows.dtype}, expected torch.int32 or torch.int64")
    for name, tensor in (("weights", weights), ("rows", rows)):
        if tensor.device != value.device:
            raise ValueError(f"{name}: found on {tensor.device}, expected on {value.device} like value")


def _known_rows(rows: Tensor, count: int) -> Tensor:
    """The rows as int64, none of them outside of the memory."""
    # graphs, transforms and fake tensors cannot look at values
    if rows.device.type != "cpu" or torch.compiler.is_compiling() or in_transform() or is_fake(rows):
        return rows.long().masked_fill((rows < -1) | (rows >= count), -1)
    if rows.numel():
        least, most = (int(bound) for bound in rows.aminmax())
        if least < -1 or most >= count:
            raise ValueError(f"rows: found values from {least} to {most}, expected from -1 to {count - 1}")
    return rows.long()


def _register(engine: str) -> None:
    """Defines stm_fast::read_rows_<engine> and its backward, with their fake kernels and autograd rule."""
    forward, backward = f"stm_fast::read_rows_{engine}", f"stm_fast::read_rows_{engine}_backward"
    tags = (torch.Tag.pt2_compliant_tag,)
    tensors = "Tensor weights, Tensor rows, Tensor value"
    torch.library.define(forward, f"({tensors}) -> Tensor", tags=tags)
    torch.library.define(backward, f"(Tensor grad_out, {tensors}) -> (Tensor weights, Tensor value)", tags=tags)
    torch.library.register_fake(forward, _fake)
    torch.library.register_fake(backward, _fake_backward)

    def backward_rule(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        weights, value = getattr(torch.ops.stm_fast, f"read_rows_{engine}_backward")(grad_out, *ctx.saved_tensors)
        return weights, None, value

    torch.library.register_autograd(forward, backward_rule, setup_context=_save)
    torch.library.register_autograd(backward, no_second_derivative)


def _fake(weights: Tensor, _rows: Tensor, value: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], weights.shape[1], value.shape[2])


def _fake_backward(_grad_out: Tensor, weights: Tensor, _rows: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


for _engine in ("cpp", "triton"):
    _register(_engine)


@torch.library.impl("stm_fast::read_rows_triton", triton_ops.DEVICE)
def _triton(weights: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    from stm_fast.kernels.topk import read_rows as run

    with triton_ops.current_device(value.device):
        return run(weights, rows, value)


@torch.library.impl("stm_fast::read_rows_triton_backward", triton_ops.DEVICE)
def _triton_backward(grad_out: Tensor, weights: Tensor, rows: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from stm_fast.kernels.topk_backward import read_rows_backward as run

    with triton_ops.current_device(value.device):
        return run(grad_out, weights, rows, value)


def _read_by_gathering(inputs: _Inputs) -> Tensor:
    """The values of a block of queries side by side, then their weighted sum."""
    weights, rows, value = inputs
    batch, _, width = value.shape
    queries, count = rows.shape[1:]
    weights, rows = weights.expand(batch, -1, -1), rows.expand(batch, -1, -1)
    size = max(1, MOST_GATHERED // max(1, batch * count * width))
    parts = []
    for first in range(0, max(1, queries), size):
        block, weight = rows[:, first : first + size], weights[:, first : first + size]
        index = block.clamp(min=0).flatten(1)[..., None].expand(-1, -1, width)
        gathered = value.gather(1, index).to(weights.dtype).view(*block.shape, width)  # [B, m, k, Cv]
        absent = (block < 0)[..., None]
        parts.append((weight[..., None] * gathered.masked_fill(absent, 0)).sum(2))
    return torch.cat(parts, dim=1).to(value.dtype)


# in the order of preference of backend="auto"
_BACKENDS: tuple[Backend[_Inputs, Tensor], ...] = (
    Backend(
        "triton",
        triton_ops.absent_reasons,
        lambda inputs: triton_ops.tensor_reasons(inputs.value),
        lambda inputs: torch.ops.stm_fast.read_rows_triton(*inputs),
    ),
    Backend(
        "cpp",
        cpp_ops.absent_reasons,
        lambda inputs: cpp_ops.tensor_reasons(inputs.value),
        lambda inputs: torch.ops.stm_fast.read_rows_cpp(*inputs),
    ),
    Backend("reference", no_reasons, no_reasons, _read_by_gathering),
)
