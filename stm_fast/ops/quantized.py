"""Reads of int8 and fp8 memories: QuantizedMemory, quantize_memory() and memory_read_quantized().

Shapes: B objects, M queries, T slots (frames) of R rows each, Ck key width, Cv value width; Bk is B or 1 (shared).
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from stm_fast.kernels.configs_quantized import DTYPES, OLDEST_FP8, WIDEST_KEY
from stm_fast.ops import cpp_ops, triton_ops
from stm_fast.ops.arguments import as_scale, check_flags, check_scale, check_tensors
from stm_fast.ops.backends import Backend, choose, no_reasons
from stm_fast.ops.functional import COUNTS, FLOATS, int32_lengths, memory_read, merge_reads
from stm_fast.ops.inputs import accumulation_dtype, requires_grad, without_autocast
from stm_fast.ops.registration import forward_mode_reasons

# slots are dequantized in parts of about this many bytes
SCRATCH_BYTES = 2**25
# fp8 is multiplied sixteen rows at a time
PADDED_ROWS = 16
_CPP = "stm_fast::memory_read_quantized_cpp"


class QuantizedMemory(NamedTuple):
    """A memory with one byte per element: keys are `key * key_scale + key_mean`, values `value * value_scale`.

    Centering makes the quantization steps of keys smaller at no cost: a mean shared by all keys adds the same amount to
    every score of a query and cancels in the softmax. fp8 values are read in place if they are a view of [B, T, Cv, R]
    with R padded to a multiple of 16, as `quantize_memory` returns them; other strides work, but are slower.

    Slots without rows within `lengths` may hold anything. In all others every element must be finite, padding included.
    """

    key: Tensor  #: [Bk, T, R, Ck] int8 or float8_e4m3fn
    key_scale: Tensor  #: [Bk, T, R, 1] float32
    key_mean: Tensor  #: [Bk, T, 1, Ck] float32
    value: Tensor  #: [B, T, R, Cv], dtype of key
    value_scale: Tensor  #: [B, T, 1, Cv] float32

    def dequantized(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """key [Bk, T*R, Ck] and value [B, T*R, Cv]."""
        value = self.value.float() * self.value_scale
        return self.dequantized_key(dtype), value.to(dtype).flatten(1, 2)

    def dequantized_key(self, dtype: torch.dtype) -> Tensor:
        """key [Bk, T*R, Ck]."""
        return (self.key.float() * self.key_scale + self.key_mean).to(dtype).flatten(1, 2)

    def slots(self, first: int, last: int) -> "QuantizedMemory":
        """A view of slots `first` to `last` - 1."""
        return QuantizedMemory(*(tensor[:, first:last] for tensor in self))


def quantize_memory(key: Tensor, value: Tensor, dtype: torch.dtype = torch.int8) -> QuantizedMemory:
    """Quantizes keys [Bk, T, R, Ck] and values [B, T, R, Cv], of any float dtype, to int8 or float8_e4m3fn.

    Keys are centered on the mean of their slot and scaled per row; values are scaled per channel and slot. Raises
    TypeError or ValueError for other dtypes, and for shapes that do not match.
    """
    check_tensors(key=key, value=value)
    if dtype not in DTYPES:
        raise TypeError(f"dtype: found {dtype}, expected one of {', '.join(map(str, DTYPES))}")
    for name, tensor in (("key", key), ("value", value)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: found {tensor.dtype}, expected a float dtype")
    if key.ndim != 4 or value.ndim != 4 or key.shape[1:3] != value.shape[1:3]:
        found = f"key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise ValueError(f"key, value: found {found}, expected [Bk, T, R, Ck] and [B, T, R, Cv]")
    if key.shape[2] == 0:
        raise ValueError(f"key: found shape {tuple(key.shape)}, expected at least one row in a slot")
    memory = centered_and_scaled(key, value, dtype)
    return memory._replace(value=with_padded_rows(memory.value)) if dtype.is_floating_point else memory


def centered_and_scaled(
    key: Tensor,
    value: Tensor,
    dtype: torch.dtype,
    key_mean: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> QuantizedMemory:
    """Quantizes keys [..., R, Ck] and values [..., R, Cv] of slots, without padding.

    With the key mean and the value scale of an earlier result, rows of that result that are quantized again keep their
    bytes, as long as that scale still fits the values of all rows.
    """
    key, value = key.float(), value.float()
    key_mean = key.mean(-2, keepdim=True) if key_mean is None else key_mean
    key, key_scale = _scaled(key - key_mean, -1, dtype)
    value, value_scale = _scaled(value, -2, dtype, value_scale)
    return QuantizedMemory(key, key_scale, key_mean, value, value_scale)


def _scaled(numbers: Tensor, dim: int, dtype: torch.dtype, earlier: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantizes numbers to `dtype`, int8 or float8_e4m3fn, and returns the result and its scale along `dim`.

    An `earlier` scale is taken again unless it is too small, or more than twice too large.
    """
    integer = not dtype.is_floating_point
    largest = float(torch.iinfo(dtype).max if integer else torch.finfo(dtype).max)
    scale = numbers.abs().amax(dim, keepdim=True) / largest
    # a scale below the smallest normal number would be imprecise: such numbers become zeros
    scale = scale.masked_fill(scale < torch.finfo(torch.float32).tiny, 1)
    if earlier is not None:
        scale = torch.where((earlier >= scale) & (earlier <= 2 * scale), earlier, scale)
    # e4m3 has no infinity: a quotient just outside its range, from a rounded scale, would become NaN
    quotient = (numbers / scale).clamp(-largest, largest)
    return (quotient.round() if integer else quotient).to(dtype), scale


def with_padded_rows(value: Tensor) -> Tensor:
    """A copy of [..., R, Cv] as a view of [..., Cv, R], with R zero-padded to a multiple of PADDED_ROWS."""
    *batch, rows, width = value.shape
    padded = value.new_zeros(*batch, width, rows + -rows % PADDED_ROWS)
    padded[..., :rows] = value.mT
    return padded[..., :rows].mT


def memory_read_quantized(
    query: Tensor,
    memory: QuantizedMemory,
    *,
    scale: SupportsFloat | None = None,
    lengths: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """``memory_read`` of a quantized memory: dot similarity, dense; one byte per element is read from device memory.

    "triton" multiplies bytes: it also quantizes the queries, per row to the dtype of the memory, and for an fp8 memory
    the softmax weights. "cpp" multiplies the stored numbers too, where the CPU has such products, slots have at least
    eight rows and keys at most 8192 channels: for an int8 memory it rounds queries and weights to bytes (AVX512_VNNI,
    AVX_VNNI), for an fp8 memory to bfloat16 (AVX512_BF16); elsewhere it dequantizes rows when it packs them. How a
    query is rounded to bytes depends on the other queries of its block, and so on the number of threads. "reference"
    dequantizes some slots at a time. The errors against float64 are in kernels/README.md. Only "reference" is
    differentiable, in `query` and the scales and means of `memory`.

    Args:
        query: ``[B, M, Ck]`` or ``[1, M, Ck]``, any float dtype.
        memory: T slots of R rows.
        scale: factor of the scores, as in memory_read(), default ``1 / sqrt(Ck)``.
        lengths: ``[B]`` integers: only the first ``lengths[b]`` of the T*R rows count; clamped to 0..T*R.
        return_lse: also return lse ``[B, M]``, as memory_read() does, for merge_reads().
        backend: "auto" takes the first of "triton", "cpp" and "reference" that supports the inputs.

    Returns:
        out ``[B, M, Cv]`` in the dtype of query, and lse if requested.

    Raises:
        TypeError, ValueError: arguments whose dtypes, devices or shapes do not match.
        NotImplementedError: a named backend that cannot run these inputs, with its reasons.
    """
    _check(query, memory, lengths)
    check_flags(return_lse=return_lse)
    scale = as_scale(scale)
    check_scale(scale, query.dtype)
    scale = 1 / math.sqrt(query.shape[2]) if scale is None else scale
    query = query.resolve_neg()  # Triton kernels are launched without the dispatcher, which would do this
    lengths = int32_lengths(lengths, memory.key.shape[1] * memory.key.shape[2])
    inputs = _Inputs(query, memory, scale, lengths)
    chosen = choose(backend, inputs, _BACKENDS, "quantized memory read")
    with without_autocast(query.device):
        out, lse = chosen.read(inputs)
    return (out, lse) if return_lse else out


class _Inputs(NamedTuple):
    """The checked arguments of one call."""

    query: Tensor
    memory: QuantizedMemory
    scale: float
    lengths: Tensor | None  # [B] int32

    def derivative_reasons(self) -> list[str]:
        """Why a kernel without derivatives cannot run; empty if none are needed."""
        no_backward = ["it has no backward"] if requires_grad((self.query, *self.memory)) else []
        return [*forward_mode_reasons(), *no_backward]

    def dense_scales(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The memory, with scales and means squeezed to [Bk, T, R], [Bk, T, Ck] and [B, T, Cv]."""
        key, key_scale, key_mean, value, value_scale = self.memory
        return key, key_scale.squeeze(3), key_mean.squeeze(2), value, value_scale.squeeze(2)


def _triton_reasons(inputs: _Inputs) -> list[str]:
    query, memory = inputs.query, inputs.memory
    reasons = triton_ops.device_reasons(query.device)
    if not reasons and memory.key.dtype.is_floating_point and query.is_cuda:
        major, minor = torch.cuda.get_device_capability(query.device)
        if major * 10 + minor < OLDEST_FP8:
            reasons.append(f"fp8 needs compute capability {OLDEST_FP8 / 10}, found {major}.{minor}")
    if query.dtype not in triton_ops.DTYPES:
        reasons.append(f"it has no kernel for {query.dtype}")
    if query.shape[2] > WIDEST_KEY:
        reasons.append(f"it takes keys of at most {WIDEST_KEY} channels, found {query.shape[2]}")
    reasons += inputs.derivative_reasons()
    if query.numel() == 0 or memory.key.numel() == 0 or memory.value.numel() == 0:
        reasons.append("it takes no empty tensors")
    return reasons


def _read_by_triton(inputs: _Inputs) -> tuple[Tensor, Tensor]:
    from stm_fast.kernels.forward_quantized import forward_quantized

    with triton_ops.current_device(inputs.query.device):
        out, lse = forward_quantized(inputs.query, *inputs.dense_scales(), inputs.lengths, inputs.scale)
    return out, lse


# key [Bk, N, Ck] and value [B, T, R, Cv], N = T R; query and results are float32
torch.library.define(
    _CPP,
    "(Tensor query, Tensor key, Tensor key_scale, Tensor key_mean, Tensor value, Tensor value_scale, Tensor? lengths,"
    " float scale) -> (Tensor out, Tensor lse)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _fake(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, _, _, value_dim = rest[3].shape
    return query.new_empty(batch, query.shape[1], value_dim), query.new_empty(batch, query.shape[1])


torch.library.register_fake(_CPP, _fake)


def _cpp_absent_reasons() -> list[str]:
    return cpp_ops.operator_absent_reasons(_CPP)


def _cpp_reasons(inputs: _Inputs) -> list[str]:
    reasons = []
    if inputs.query.device.type != "cpu":
        reasons.append(f"it runs on cpu tensors only, found {inputs.query.device.type}")
    if inputs.query.dtype not in triton_ops.DTYPES:
        reasons.append(f"it has no kernel for {inputs.query.dtype}")
    return reasons + inputs.derivative_reasons()


def _read_by_cpp(inputs: _Inputs) -> tuple[Tensor, Tensor]:
    key, key_scale, key_mean, value, value_scale = inputs.dense_scales()
    rows = key.flatten(1, 2), key_scale.flatten(1, 2), key_mean, value, value_scale
    out, lse = torch.ops.stm_fast.memory_read_quantized_cpp(inputs.query.float(), *rows, inputs.lengths, inputs.scale)
    return out.to(inputs.query.dtype), lse


def _read_in_parts(inputs: _Inputs) -> tuple[Tensor, Tensor]:
    query, memory, scale, lengths = inputs
    dtype = accumulation_dtype(query.dtype)
    batch, _, rows, value_dim = memory.value.shape
    out = query.new_zeros(batch, query.shape[1], value_dim, dtype=dtype)
    lse = query.new_full((batch, query.shape[1]), -math.inf, dtype=dtype)
    for first, part in _parts(memory, dtype):
        key, value = part.dequantized(dtype)
        here = None if lengths is None else (lengths - first * rows).clamp(0, key.shape[1])
        read = memory_read(query.to(dtype), key, value, scale=scale, lengths=here, return_lse=True)
        out, lse = merge_reads([out, read[0]], [lse, read[1]])
    return out.to(query.dtype), lse


def _parts(memory: QuantizedMemory, dtype: torch.dtype) -> Iterator[tuple[int, QuantizedMemory]]:
    """Parts of as many slots as fit SCRATCH_BYTES in `dtype`, each with the index of its first slot."""
    numbers = max(1, memory.key[:, :1].numel() + memory.value[:, :1].numel())
    step = max(1, SCRATCH_BYTES // (numbers * dtype.itemsize))
    for first in range(0, memory.key.shape[1], step):
        yield first, memory.slots(first, first + step)


# in the order of preference of backend="auto"
_BACKENDS: tuple[Backend[_Inputs, tuple[Tensor, Tensor]], ...] = (
    Backend("triton", triton_ops.absent_reasons, _triton_reasons, _read_by_triton),
    Backend("cpp", _cpp_absent_reasons, _cpp_reasons, _read_by_cpp),
    Backend("reference", no_reasons, no_reasons, _read_in_parts),
)


def _check(query: Tensor, memory: QuantizedMemory, lengths: Tensor | None) -> None:
    if not isinstance(memory, QuantizedMemory):
        raise TypeError(f"memory: found {type(memory).__name__}, expected a QuantizedMemory")
    check_tensors(("lengths",), query=query, lengths=lengths, **memory._asdict())
    key, value = memory.key, memory.value
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.ndim != 3 or key.ndim != 4 or value.ndim != 4:
        raise ValueError(f"query, memory: found {shapes}, expected [B, M, Ck], [Bk, T, R, Ck] and [B, T, R, Cv]")
    if query.dtype not in FLOATS:
        raise TypeError(f"query: found {query.dtype}, expected a float dtype")
    if key.dtype not in DTYPES or value.dtype != key.dtype:
        expected = " or ".join(map(str, DTYPES))
        raise TypeError(f"memory: found keys of {key.dtype} and values of {value.dtype}, expected both {expected}")
    if query.shape[2] != key.shape[3] or query.shape[2] == 0 or key.shape[1:3] != value.shape[1:3]:
        raise ValueError(f"query, memory: found {shapes}, whose widths or slots do not match")
    if key.shape[2] == 0:
        raise ValueError(f"memory: found keys of shape {tuple(key.shape)}, expected at least one row in a slot")
    if query.shape[0] not in (1, value.shape[0]) or key.shape[0] not in (1, value.shape[0]):
        raise ValueError(f"query, memory: found {shapes}, expected batches of 1 or that of value")
    shapes_of_scales = {
        "key_scale": (*key.shape[:3], 1),
        "key_mean": (*key.shape[:2], 1, key.shape[3]),
        "value_scale": (*value.shape[:2], 1, value.shape[3]),
    }
    for name, shape in shapes_of_scales.items():
        tensor = getattr(memory, name)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(f"{name}: found {tensor.dtype} {tuple(tensor.shape)}, expected torch.float32 {shape}")
    for name, tensor in (*memory._asdict().items(), ("lengths", lengths)):
        if tensor is not None and tensor.device != query.device:
            raise ValueError(f"{name}: found on {tensor.device}, expected on {query.device} like query")
    if lengths is not None and (tuple(lengths.shape) != value.shape[:1] or lengths.dtype not in COUNTS):
        raise ValueError(f"lengths: found {lengths.dtype} {tuple(lengths.shape)}, expected integers [{value.shape[0]}]")
