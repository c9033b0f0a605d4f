"""How wrong a read of a quantized memory by the C++ engine may be."""

import torch
from torch import Tensor

from instruction_sets import MULTIPLY_BFLOAT16, MULTIPLY_BYTES
from stm_fast.ops import memory_read
from stm_fast.ops.quantized import QuantizedMemory, memory_read_quantized
from stm_fast.testing import ReadCase, Tensors
from stm_fast.testing.quantized import rounded_read
from stm_fast.testing.rounding import rounded_once

MULTIPLYING = {torch.int8: MULTIPLY_BYTES, torch.float8_e4m3fn: MULTIPLY_BFLOAT16}
FEWEST_ROWS = 8  # slots of fewer are read as floats

Results = dict[str, Tensor]


def multiplies_stored_numbers(memory: QuantizedMemory) -> bool:
    """Whether the engine rounds queries and weights, to multiply the numbers of this memory as they are stored."""
    from stm_fast import _C

    return memory.key.shape[2] >= FEWEST_ROWS and _C.instructions() in MULTIPLYING[memory.key.dtype]


def read(query: Tensor, memory: QuantizedMemory, lengths: list[int] | None) -> Results:
    """The results of the engine."""
    counts = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    found = named(memory_read_quantized(query, memory, lengths=counts, return_lse=True, backend="cpp"))
    assert found["out"].dtype == query.dtype
    return found


def bounds(query: Tensor, memory: QuantizedMemory, lengths: list[int] | None) -> tuple[Results, Results, Results]:
    """For assert_no_worse_than_eager(): the read with the roundings of the engine, rounded once, and exact."""
    options = {
        "lengths": None if lengths is None else torch.tensor(lengths, dtype=torch.int32),
        "return_lse": True,
        "backend": "reference",
    }
    doubles = Tensors(query.double(), *memory.dequantized(torch.float64), None, None)
    exact = named(memory_read(*doubles[:3], **options))
    if multiplies_stored_numbers(memory):
        eager = named(rounded_read(query, memory, lengths))
    else:
        eager = named(memory_read(query.float(), *memory.dequantized(torch.float32), **options))
    case = ReadCase(len(memory.value), key_dim=query.shape[2], lengths=lengths, rows=doubles.key.shape[1])
    return eager, rounded_once(case, doubles, query.dtype, {}), exact


def named(results: tuple[Tensor, Tensor]) -> Results:
    return dict(zip(("out", "lse"), results, strict=True))
