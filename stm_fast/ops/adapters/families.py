"""The memory reads that adapt() finds in published code, by names of classes and functions and their signatures."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stm_fast.ops.adapters import examples
from stm_fast.ops.adapters.affinity import Affinity
from stm_fast.ops.adapters.aot import AOTLongTermAttention, DeAOTGatedPropagation
from stm_fast.ops.adapters.examples import Example
from stm_fast.ops.adapters.mivos import MiVOSMemoryReader
from stm_fast.ops.adapters.stcn import STCNMemoryReader
from stm_fast.ops.adapters.stm import MaskPropagationMemoryReader, STMMemory
from stm_fast.ops.functional import memory_read
from stm_fast.ops.layers import MemoryRead, rows

Signatures = Mapping[str, tuple[str, ...]]


def parameters(function: Callable[..., object]) -> tuple[str, ...]:
    """The names of a function's parameters, without a method's self."""
    names = tuple(inspect.signature(function).parameters)
    return names[1:] if names[:1] == ("self",) else names


class _AOT(AOTLongTermAttention):
    def forward(self, Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        if _reads_otherwise(self):
            own: tuple[Tensor, Tensor] = super(AOTLongTermAttention, self).forward(Q, K, V)
            return own
        return super().forward(Q, K, V)


class _DeAOT(DeAOTGatedPropagation):
    def forward(  # type: ignore[override]
        self, Q: Tensor, K: Tensor, V: Tensor, U: Tensor, size_2d: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        if _reads_otherwise(self):
            own: tuple[Tensor, Tensor] = super(DeAOTGatedPropagation, self).forward(Q, K, V, U, size_2d)
            return own
        return super().forward(Q, K, V, U, size_2d)


def _reads_otherwise(module: Any) -> bool:
    """Whether AOT's class drops weights, or takes a share as top_k, which not all its versions do alike."""
    return (module.training and module.drop_prob > 0) or not float(module.top_k).is_integer()


class _SAM2(nn.Module):
    """SAM 2's attention with rotary encoding, whose forward is the published one around another attention."""

    backend: str

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        with _ReadsMemory(self.backend):
            read: Tensor = super().forward(q, k, v, num_k_exclude_rope)
        return read


class _ReadsMemory(TorchFunctionMode):
    """Reads memories with memory_read() in place of F.scaled_dot_product_attention().

    With backend "auto" only on a CPU, in float32, which was measured to be faster, and in float64.
    """

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}), backend=self.backend)
        return func(*args, **(kwargs or {}))


def _attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, backend: str, **options: Any) -> Tensor:
    """Query [B, heads, M, Ck], key [B, heads, N, Ck], value [B, heads, N, Cv] to [B, heads, M, Cv]."""
    is_plain = not others and options.keys() <= {"dropout_p"} and not options.get("dropout_p")
    is_fast = query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)
    if not is_plain or (backend == "auto" and not is_fast):
        return F.scaled_dot_product_attention(query, key, value, *others, **options)
    read = memory_read(*(tensor.flatten(0, 1) for tensor in (query, key, value)), backend=backend)
    return read.reshape(*query.shape[:3], value.shape[3])


class ModuleReader(NamedTuple):
    """A class of layers that read the memory. It is replaced by a subclass of itself, with `adapter` before it."""

    name: str
    network: str
    signatures: Signatures  # of its methods
    attributes: tuple[str, ...]  # of its instances, which the adapter uses
    adapter: type[nn.Module]
    examples: tuple[Example, ...] = ()  # on which both must agree; none where the adapter runs the published code


MODULE_READERS = (
    ModuleReader(
        "Memory",
        "STM",
        {"forward": ("m_in", "m_out", "q_in", "q_out")},
        (),
        STMMemory,
        (examples.stm, examples.stm_rows),
    ),
    ModuleReader(
        "MemoryReader",
        "STCN",
        {"get_affinity": ("mk", "qk"), "readout": ("affinity", "mv", "qv")},
        (),
        STCNMemoryReader,
        (examples.stcn,),
    ),
    ModuleReader(
        "MemoryReader",
        "Mask-Propagation",
        {"forward": ("mk", "mv", "qk", "qv")},
        (),
        MaskPropagationMemoryReader,
        (examples.stm,),
    ),
    ModuleReader(
        "EvalMemoryReader",
        "MiVOS and Mask-Propagation",
        {"forward": ("mk", "mv", "qk")},
        ("top_k", "km"),
        MiVOSMemoryReader,
        (examples.mivos,),
    ),
    ModuleReader(
        "MultiheadAttention",
        "AOT",
        {"forward": ("Q", "K", "V")},
        ("num_head", "d_att", "use_linear", "use_dis", "max_mem_len_ratio", "top_k", "drop_prob", "projection"),
        _AOT,
        (examples.aot,),
    ),
    ModuleReader(
        "GatedPropagation",
        "DeAOT and PAOT",
        {"forward": ("Q", "K", "V", "U", "size_2d")},
        ("num_head", "d_att", "use_linear", "use_dis", "max_mem_len_ratio", "top_k", "drop_prob", "dw_conv"),
        _DeAOT,
        (examples.deaot,),
    ),
    ModuleReader("RoPEAttention", "SAM 2", {"forward": ("q", "k", "v", "num_k_exclude_rope")}, ("dropout_p",), _SAM2),
)


# in a model that imports them, the read is replaced already
ADAPTERS = (MemoryRead, STCNMemoryReader, MiVOSMemoryReader, AOTLongTermAttention, DeAOTGatedPropagation)


class PlainReader(NamedTuple):
    """A class that is not a layer: some of its methods are replaced, for all its instances."""

    name: str
    network: str
    signatures: Signatures  # of its methods
    methods: Callable[[str], Mapping[str, Callable[..., Any]]]  # ours, with a backend
    attributes: Mapping[str, Any]  # of an instance that reads the example
    example: Example


class _SharedAffinity(Affinity):
    """The affinity of all objects."""

    def expand(self, *_sizes: int) -> Self:
        return self


def _memory_bank(backend: str) -> Mapping[str, Callable[..., Any]]:
    """Of STCN: keys [1, Ck, N] and [1, Ck, M]; values [O, Cv, N] to [O, Cv, M]."""

    def global_matching(self: Any, mk: Tensor, qk: Tensor) -> _SharedAffinity:
        return _SharedAffinity(rows(qk, "qk"), rows(mk, "mk"), "l2", top_k=self.top_k, backend=backend)

    def readout(_self: Any, affinity: _SharedAffinity, mv: Tensor) -> Tensor:
        return affinity.read(rows(mv, "mv")).mT

    return {"_global_matching": global_matching, "_readout": readout}


PLAIN_READERS = (
    PlainReader(
        "MemoryBank",
        "STCN",
        {"_global_matching": ("mk", "qk"), "_readout": ("affinity", "mv"), "match_memory": ("qk",)},
        _memory_bank,
        {"top_k": 5},
        examples.stcn_bank,
    ),
)


class FunctionReader(NamedTuple):
    """Functions that one module defines and others import by name. They are replaced together.

    Parameters must be the first of ours. What one of `consumed` returns is lazy, and a module that holds it without the
    function that takes it keeps its own.
    """

    network: str
    functions: tuple[str, ...]
    consumed: Mapping[str, str]  # the functions that take what others return
    example: Example


FUNCTION_READERS = (
    FunctionReader(
        "XMem, Cutie, DEVA, XMem++, Track-Anything and MatAnyone",
        ("get_similarity", "do_softmax", "get_affinity", "readout"),
        {"get_similarity": "do_softmax", "get_affinity": "readout"},
        examples.xmem,
    ),
)
