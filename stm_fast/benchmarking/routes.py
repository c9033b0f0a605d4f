"""Every way to read a memory that a user has today, by name, beside the backends of stm_fast."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from stm_fast.benchmarking.attention import Read, flex, flex_tile, sdpa
from stm_fast.benchmarking.inputs import BYTES, QUANTISING_BYTES, Layout
from stm_fast.benchmarking.published import (
    chunks,
    chunks_top_k,
    last_dim,
    last_dim_top_k,
    published,
    published_top_k,
)
from stm_fast.benchmarking.workload import KEY_DIM, TOP_K, Workload
from stm_fast.choices import RouteName
from stm_fast.ops import memory_read
from stm_fast.ops.backends import BACKENDS
from stm_fast.ops.quantised import QuantisedMemory, memory_read_quantised


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
