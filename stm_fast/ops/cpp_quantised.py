"""The C++ engine's forward read of a quantised memory: bytes become numbers as they are packed, block by block."""

import torch
from torch import Tensor

from stm_fast.ops import cpp_ops

# T slots of N / T rows each; query and results are float32
torch.library.define(
    "stm_fast::memory_read_quantised_cpp",
    "(Tensor query, Tensor key, Tensor key_scale, Tensor key_mean, Tensor value, Tensor value_scale, Tensor? lengths,"
    " float scale) -> (Tensor out, Tensor lse)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _fake(
    query: Tensor,
    _key: Tensor,
    _key_scale: Tensor,
    _key_mean: Tensor,
    value: Tensor,
    _value_scale: Tensor,
    _lengths: Tensor | None,
    _scale: float,
) -> tuple[Tensor, Tensor]:
    batch, _, value_dim = value.shape
    return query.new_empty(batch, query.shape[1], value_dim), query.new_empty(batch, query.shape[1])


torch.library.register_fake("stm_fast::memory_read_quantised_cpp", _fake)


def not_supported_reasons(query: Tensor) -> list[str]:
    """Why it cannot read a quantised memory for this query; empty where it can."""
    reasons = cpp_ops.absent_reasons()
    if reasons:
        return reasons
    if not torch._C._dispatch_has_kernel_for_dispatch_key("stm_fast::memory_read_quantised_cpp", "CPU"):
        return ["the extension was built from older sources, without it; build it again"]
    if query.device.type != "cpu":
        reasons.append(f"it runs on cpu tensors only, found {query.device.type}")
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        reasons.append(f"it has no kernel for {query.dtype}")
    return reasons


def read(
    query: Tensor,
    key: Tensor,
    key_scale: Tensor,
    key_mean: Tensor,
    value: Tensor,
    value_scale: Tensor,
    lengths: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Reads T slots of R rows; all strides are taken as they are where slot after slot is one run of rows.

    Args:
        query: ``[B or 1, M, Ck]``.
        key, value: ``[Bk, T, R, Ck]`` and ``[B, T, R, Cv]``, int8 or float8_e4m3fn.
        key_scale, key_mean, value_scale: ``[Bk, T, R]``, ``[Bk, T, Ck]`` and ``[B, T, Cv]``, float32.
        lengths: ``[B]`` int32: rows that count.
        scale: factor of the scores.

    Returns:
        out ``[B, M, Cv]`` in the dtype of query, lse ``[B, M]`` float32.
    """
    rows = key.flatten(1, 2), key_scale.flatten(1, 2), key_mean, value.flatten(1, 2), value_scale
    out, lse = torch.ops.stm_fast.memory_read_quantised_cpp(query.float(), *rows, lengths, scale)
    return out.to(query.dtype), lse
