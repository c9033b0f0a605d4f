"""Every way in which a user can read a memory today, by name, next to the backends of stm_fast.

A read takes query [1, M, Ck], key [O, N, Ck] and value [O, N, Cv], and gives out [O, M, Cv].
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from stm_fast.benchmarking.workload import BYTES, KEY_DIM, PASSES, QUANTIZING_BYTES, TOP_K, Layout, Read, Workload
from stm_fast.choices import RouteName
from stm_fast.ops import memory_read
from stm_fast.ops.backends import BACKENDS
from stm_fast.ops.quantized import QuantizedMemory, memory_read_quantized

_CHUNK = 128  # queries


def published(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Matrix product, division, softmax over the memory, matrix product (STM section 3.2, equations 1 and 2)."""
    score = key @ query.mT / math.sqrt(query.shape[2])  # [O, N, M]
    affinity = torch.softmax(score, dim=1)
    return (value.mT @ affinity).mT


def published_top_k(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The k largest scores of each query put back into a dense affinity of zeros, as XMem and Cutie read."""
    score = key @ query.mT / math.sqrt(query.shape[2])  # [O, N, M]
    largest, index = score.topk(min(TOP_K, key.shape[1]), dim=1)  # [O, k, M]
    affinity = torch.zeros_like(score).scatter_(1, index, torch.softmax(largest, dim=1))
    return (value.mT @ affinity).mT


def last_dim(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The affinity the other way round: its softmax runs along memory, and in place where no gradient is wanted."""
    score = (query / math.sqrt(query.shape[2])) @ key.mT  # [O, M, N]
    if torch.is_grad_enabled():
        return torch.softmax(score, dim=-1) @ value
    torch.softmax(score, dim=-1, out=score)
    return score @ value


def last_dim_top_k(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The k largest scores of each query, and a weighted sum of those k rows of value alone."""
    score = (query / math.sqrt(query.shape[2])) @ key.mT  # [O, M, N]
    largest, index = score.topk(min(TOP_K, key.shape[1]), dim=-1)  # [O, M, k]
    weight = torch.softmax(largest, dim=-1)
    # one object at a time: the rows picked are k/T times as large as the values
    reads = [torch.einsum("mk,mkc->mc", w, v[i]) for w, v, i in zip(weight, value, index, strict=True)]
    return torch.stack(reads)


def in_chunks(read: Read) -> Read:
    """A Python loop over blocks of queries: what people write when the affinity does not fit."""
    return lambda query, *memory: torch.cat([read(block, *memory) for block in query.split(_CHUNK, dim=1)], dim=1)


def sdpa(backend: SDPBackend | None = None, *, split: bool = False) -> Read:
    """PyTorch's attention, the backend forced where one is named.

    split: values as Cv / Ck heads of width Ck under one affinity, computed once a head: 1.6 times the work at 128 and
    512, but widths that the fast kernels take.
    """

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        objects, key_dim, value_dim = key.shape[0], key.shape[2], value.shape[2]
        heads = value_dim // key_dim if split else 1
        query_heads = query[:, None].expand(objects, heads, -1, -1)  # [O, heads, M, Ck]
        key_heads = key[:, None].expand(-1, heads, -1, -1)  # [O, heads, N, Ck]
        value_heads = value.view(objects, -1, heads, value_dim // heads).transpose(1, 2)  # [O, heads, N, Cv / heads]
        with nullcontext() if backend is None else sdpa_kernel(backend):
            out = scaled_dot_product_attention(query_heads, key_heads, value_heads)
        return out.transpose(1, 2).flatten(2)  # [O, M, Cv]

    return read


def flex(kernel_options: Any = None) -> Read:
    """FlexAttention, compiled for one shape."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query_heads = query[:, None].expand(key.shape[0], -1, -1, -1)  # [O, 1, M, Ck]
        return compiled(query_heads, key[:, None], value[:, None], kernel_options=kernel_options)[:, 0]

    return read


def flex_tile(queries: int, rows: int) -> dict[str, int]:
    """Options that make FlexAttention's tile small enough for values of width 512 to fit into shared memory."""
    tile = {"BLOCK_M": queries, "BLOCK_N": rows, "num_stages": 1, "num_warps": 4 if queries < 64 else 8}
    backward = {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 32, "bwd_BLOCK_M2": 32, "bwd_BLOCK_N2": 32, "bwd_num_stages": 1}
    return {f"fwd_{name}": size for name, size in tile.items()} | backward


@dataclass(frozen=True)
class Route:
    """One way to read a memory.

    what:       a few words for readers of tables
    make:       the read of a workload, or a reason why there is none
    passes:     that it has
    device:     "cuda" where it runs on nothing else
    layout:     how the inputs are stored, as the users of the route store them
    affinities: how many affinities exist at its peak: an estimate, so that no machine runs out of memory
    """

    name: str
    what: str
    make: Callable[[Workload], Read | str]
    passes: tuple[str, ...] = PASSES
    device: str | None = None
    layout: Layout = "channels"
    affinities: Callable[[Workload], float] = lambda workload: 0.0

    def build(self, workload: Workload) -> Read | str:
        """The read of a workload, or a reason why there is none."""
        if workload.pass_name not in self.passes:
            return f"it has no {workload.pass_name}"
        if self.device not in (None, workload.device):
            return f"it runs on {self.device} tensors only"
        return self.make(workload)

    @property
    def quantized(self) -> bool:
        """Whether the memory is rounded before the read: then its error is shown next to its time."""
        return self.layout in BYTES

    def peak_bytes(self, workload: Workload) -> float:
        """About what it takes beyond inputs in rows or by channels."""
        quantizing = QUANTIZING_BYTES * workload.memory_elements if self.quantized else 0
        return self.affinities(workload) * workload.affinity_bytes + quantizing

    def memory_itemsize(self, workload: Workload) -> int:
        """Bytes of a number of the memory as this route stores it."""
        return BYTES[self.layout].itemsize if self.quantized else workload.dtype.itemsize


def _plain(dense: Read, top_k: Read) -> Callable[[Workload], Read]:
    return lambda workload: top_k if workload.pass_name == "top-k" else dense


def _tf32(workload: Workload) -> Read | str:
    if workload.device != "cuda" or workload.dtype != torch.float32:
        return "TF32 is for float32 on a GPU"
    read, matmul = _plain(published, published_top_k)(workload), torch.backends.cuda.matmul

    def with_tf32(*inputs: Tensor) -> Tensor:
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            return read(*inputs)
        finally:
            matmul.fp32_precision = before

    return with_tf32


def _ours(backend: str, workload: Workload) -> Read:
    return partial(memory_read, top_k=TOP_K if workload.pass_name == "top-k" else None, backend=backend)


def _of_bytes(workload: Workload) -> Read:
    """The read of a memory of one byte a number: by its kernel on a GPU, where a fallback would mislead."""
    backend = "triton" if workload.device == "cuda" else "auto"
    return lambda query, *memory: cast(Tensor, memory_read_quantized(query, QuantizedMemory(*memory), backend=backend))


def _affinities(forward: float, backward: float, top_k: float = 0.0) -> Callable[[Workload], float]:
    counts = {"forward": forward, "backward": backward, "top-k": top_k}
    return lambda workload: counts[workload.pass_name]


def _affinities_of_sdpa(workload: Workload) -> float:
    # on a CPU no fused kernel takes these widths, and PyTorch silently falls back to its math backend
    return 2.0 if workload.device == "cpu" else 0.0


_DENSE = ("forward", "backward")


def _compiled(name: str, what: str, *, dynamic: bool) -> Route:
    make = partial(torch.compile, published, dynamic=dynamic, fullgraph=True)
    return Route(name, what, lambda workload: make(), _DENSE, affinities=_affinities(1, 2))


def _attention(name: str, what: str, make: Callable[[], Read], device: str | None = None, **more: Any) -> Route:
    return Route(name, what, lambda workload: make(), _DENSE, device, "rows", **more)


def _forced(name: str, backend: SDPBackend, device: str | None = None, **more: Any) -> Route:
    return _attention(f"sdpa-{name}", f"its {name} backend forced", partial(sdpa, backend), device, **more)


def _split(name: str, backend: SDPBackend, device: str | None = None) -> Route:
    what, make = f"the same, values as 4 heads of {KEY_DIM}", partial(sdpa, backend, split=True)
    return _attention(f"sdpa-{name}-split", what, make, device)


def _flex(queries: int, rows: int) -> Route:
    make = partial(flex, flex_tile(queries, rows))
    return _attention(f"flex-{queries}x{rows}", f"FlexAttention, tile {queries} x {rows}", make, "cuda")


_PEERS = (
    Route("published", "bmm, softmax, bmm", _plain(published, published_top_k), affinities=_affinities(2, 3, 3)),
    Route("published-tf32", "the same with TF32 on", _tf32, affinities=_affinities(2, 3, 3)),
    Route(
        "last-dim", "softmax along memory, in place", _plain(last_dim, last_dim_top_k), affinities=_affinities(1, 3, 1)
    ),
    Route(
        "chunks",
        f"a loop over {_CHUNK} queries",
        _plain(in_chunks(last_dim), in_chunks(last_dim_top_k)),
        affinities=_affinities(0, 1),
    ),
    _compiled("compile", "torch.compile, for one T", dynamic=False),
    _compiled("compile-dynamic", "torch.compile, for any T", dynamic=True),
    _attention("sdpa", "scaled_dot_product_attention", sdpa, affinities=_affinities_of_sdpa),
    _forced("math", SDPBackend.MATH, affinities=_affinities(2, 3)),
    _forced("flash", SDPBackend.FLASH_ATTENTION),
    _forced("efficient", SDPBackend.EFFICIENT_ATTENTION),
    _forced("cudnn", SDPBackend.CUDNN_ATTENTION, "cuda"),
    _split("flash", SDPBackend.FLASH_ATTENTION),
    _split("cudnn", SDPBackend.CUDNN_ATTENTION, "cuda"),
    _attention("flex", "FlexAttention, default tile", flex),
    *(_flex(queries, rows) for queries, rows in ((32, 32), (64, 32), (64, 64))),
)
_OURS = (
    *(Route(backend.name, "stm_fast", partial(_ours, backend.name), layout="rows") for backend in BACKENDS),
    *(Route(layout, f"stm_fast, a memory of {layout}", _of_bytes, ("forward",), layout=layout) for layout in BYTES),
)

_BUILT = {route.name: route for route in (*_PEERS, *_OURS)}
ROUTES: dict[str, Route] = {name: _BUILT[name] for name in get_args(RouteName)}
