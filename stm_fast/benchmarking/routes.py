"""Every way in which a user can read a memory today, by name, beside the backends of stm_fast.

A read takes query [1, M, Ck], key [O, N, Ck] and value [O, N, Cv], and gives out [O, M, Cv].
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from stm_fast.benchmarking.timing import Read
from stm_fast.benchmarking.workload import BYTES, KEY_DIM, QUANTISING_BYTES, TOP_K, Layout, Workload
from stm_fast.choices import RouteName
from stm_fast.ops import memory_read
from stm_fast.ops.backends import BACKENDS
from stm_fast.ops.quantised import QuantisedMemory, memory_read_quantised

QUERIES_PER_CHUNK = 128


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


def chunks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A Python loop over blocks of queries: what people write when the affinity does not fit."""
    return torch.cat([last_dim(block, key, value) for block in _blocks(query)], dim=1)


def chunks_top_k(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same loop, with the k largest scores alone."""
    return torch.cat([last_dim_top_k(block, key, value) for block in _blocks(query)], dim=1)


def _blocks(query: Tensor) -> Iterator[Tensor]:
    return (query[:, start : start + QUERIES_PER_CHUNK] for start in range(0, query.shape[1], QUERIES_PER_CHUNK))


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
    build:      the read of a pass, or a string that says why there is none
    layout:     how the inputs are stored, as the users of the route store them
    affinities: how many affinities it keeps alive at its peak: an estimate, so that no machine is filled up
    """

    name: str
    what: str
    build: Callable[[Workload], Read | str]
    layout: Layout = "channels"
    affinities: Callable[[Workload], float] = lambda workload: 0.0

    @property
    def quantised(self) -> bool:
        """Whether the memory is rounded before the read: then its error belongs beside its time."""
        return self.layout in BYTES

    def peak_bytes(self, workload: Workload) -> float:
        """About what it takes beyond inputs that lie in rows or by channels."""
        quantising = QUANTISING_BYTES * workload.memory_elements if self.quantised else 0
        return self.affinities(workload) * workload.affinity_bytes + quantising

    def memory_itemsize(self, workload: Workload) -> int:
        """Bytes of a number of the memory as this route stores it."""
        return BYTES[self.layout].itemsize if self.quantised else workload.dtype.itemsize


def _plain(dense: Read, top_k: Read) -> Callable[[Workload], Read]:
    return lambda workload: top_k if workload.pass_name == "top-k" else dense


def _dense(make: Callable[[], Read], device: str | None = None) -> Callable[[Workload], Read | str]:
    """For routes without a top-k, and for those of one kind of device."""

    def build(workload: Workload) -> Read | str:
        if workload.pass_name == "top-k":
            return "it has no top-k"
        if device and workload.device != device:
            return f"it runs on {device} tensors only"
        return make()

    return build


def _tf32(workload: Workload) -> Read | str:
    if workload.device != "cuda" or workload.dtype != torch.float32:
        return "TF32 is for float32 on a GPU"
    read = published_top_k if workload.pass_name == "top-k" else published

    def with_tf32(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with _tf32_allowed():
            return read(query, key, value)

    return with_tf32


@contextmanager
def _tf32_allowed() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _compiled(dynamic: bool) -> Callable[[], Read]:
    return lambda: torch.compile(published, dynamic=dynamic, fullgraph=True)


def _ours(backend: str) -> Callable[[Workload], Read]:
    def build(workload: Workload) -> Read:
        top_k = TOP_K if workload.pass_name == "top-k" else None

        def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = memory_read(query, key, value, top_k=top_k, backend=backend)
            assert isinstance(out, Tensor)
            return out

        return read

    return build


def _of_bytes(workload: Workload) -> Read | str:
    """The read of a memory of one byte a number: by its kernel on a GPU, where falling back would mislead."""
    if workload.pass_name != "forward":
        return f"it has no {workload.pass_name}"
    backend = "triton" if workload.device == "cuda" else "auto"

    def read(query: Tensor, *memory: Tensor) -> Tensor:
        out = memory_read_quantised(query, QuantisedMemory(*memory), backend=backend)
        assert isinstance(out, Tensor)
        return out

    return read


def _sdpa_routes() -> Iterator[Route]:
    """Each backend of scaled_dot_product_attention forced, as it is and with values as four heads of width 128."""
    backends = {
        "math": (SDPBackend.MATH, None, _affinities(2, 3)),
        "flash": (SDPBackend.FLASH_ATTENTION, None, _affinities(0, 0)),
        "efficient": (SDPBackend.EFFICIENT_ATTENTION, None, _affinities(0, 0)),
        "cudnn": (SDPBackend.CUDNN_ATTENTION, "cuda", _affinities(0, 0)),
    }
    for name, (backend, device, affinities) in backends.items():
        build = _dense(partial(sdpa, backend), device)
        yield Route(f"sdpa-{name}", f"its {name} backend forced", build, "rows", affinities)
    for name in ("flash", "cudnn"):
        backend, device, affinities = backends[name]
        build = _dense(partial(sdpa, backend, split=True), device)
        yield Route(f"sdpa-{name}-split", f"the same, values as 4 heads of {KEY_DIM}", build, "rows", affinities)


def _flex_route(queries: int, rows: int) -> Route:
    build = _dense(lambda: flex(flex_tile(queries, rows)), "cuda")
    return Route(f"flex-{queries}x{rows}", f"FlexAttention, tile {queries} x {rows}", build, "rows")


def _affinities(forward: float, backward: float, top_k: float = 0.0) -> Callable[[Workload], float]:
    counts = {"forward": forward, "backward": backward, "top-k": top_k}
    return lambda workload: counts[workload.pass_name]


def _affinities_of_sdpa(workload: Workload) -> float:
    # on a CPU no fused kernel takes these widths, and PyTorch says nothing when it falls back to its math backend
    return 2.0 if workload.device == "cpu" else 0.0


_PEERS = (
    Route("published", "bmm, softmax, bmm", _plain(published, published_top_k), affinities=_affinities(2, 3, 3)),
    Route("published-tf32", "the same with TF32 on", _tf32, affinities=_affinities(2, 3, 3)),
    Route(
        "last-dim", "softmax along memory, in place", _plain(last_dim, last_dim_top_k), affinities=_affinities(1, 3, 1)
    ),
    Route("chunks", "a loop over 128 queries", _plain(chunks, chunks_top_k), affinities=_affinities(0, 1)),
    Route("compile", "torch.compile, for one T", _dense(_compiled(False)), affinities=_affinities(1, 2)),
    Route("compile-dynamic", "torch.compile, for any T", _dense(_compiled(True)), affinities=_affinities(1, 2)),
    Route("sdpa", "scaled_dot_product_attention", _dense(sdpa), "rows", _affinities_of_sdpa),
    *_sdpa_routes(),
    Route("flex", "FlexAttention, default tile", _dense(flex), "rows"),
    *(_flex_route(queries, rows) for queries, rows in ((32, 32), (64, 32), (64, 64))),
)
_OURS = (
    *(Route(backend.name, "stm_fast", _ours(backend.name), "rows") for backend in BACKENDS),
    *(Route(layout, f"stm_fast, a memory of {layout}", _of_bytes, layout) for layout in BYTES),
)

_BUILT = {route.name: route for route in (*_PEERS, *_OURS)}
ROUTES: dict[str, Route] = {name: _BUILT[name] for name in get_args(RouteName)}
OURS = tuple(route.name for route in _OURS)
