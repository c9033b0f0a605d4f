"""More routes of the package: other layouts, the bank, CUDA graphs, tiles."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from stm_fast.benchmarking.routes import ROUTES, Route
from stm_fast.benchmarking.timing import Read
from stm_fast.benchmarking.workload import KEY_DIM, VALUE_DIM, Workload
from stm_fast.kernels.configs import forward_config
from stm_fast.kernels.launch import arithmetic_of
from stm_fast.kernels.targets import target_of
from stm_fast.kernels.tiles import Choice
from stm_fast.kernels.tuned import Tiles, using
from stm_fast.memory import MemoryBank

# routes of the portable kernel, which also reads on sm_90 where it is given a tile, with the fields of the tile that
# differ from configs.py
TILES: dict[str, dict[str, int]] = {
    "portable": {},
    "portable-2-stages": {"num_stages": 2},
    "portable-4-stages": {"num_stages": 4},
}


def portable_tile(dtype: torch.dtype, fields: dict[str, int]) -> Tiles:
    """A table with the tile of configs.py at the published widths, some fields replaced."""
    architecture = target_of(torch.empty(0, device="cuda").device).architecture
    choice = Choice(architecture, arithmetic_of(dtype), KEY_DIM, VALUE_DIM, regular=True, weighted=False)
    with using({}):
        return {("forward", choice): replace(forward_config(choice), **fields)}


def _with_tile(fields: dict[str, int], workload: Workload) -> Read | str:
    tiles, read = portable_tile(workload.dtype, fields), ROUTES["triton"].build(workload)
    if isinstance(read, str):
        return read

    def read_with_tile(query: Tensor, *memory: Tensor) -> Tensor:
        with using(tiles):
            return read(query, *memory)

    return read_with_tile


def _from_bank(workload: Workload) -> Read:
    """The read of a bank with the memory, frame by frame; it is filled when the memory is first seen."""
    banks: dict[int, MemoryBank] = {}

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if key.data_ptr() not in banks:
            banks[key.data_ptr()] = _bank(key, value, workload.shape.queries)
        column = query.mT[..., None]  # [1, Ck, M, 1], a feature map of one column
        return banks[key.data_ptr()].read(column).flatten(2).mT

    return read


def _bank(key: Tensor, value: Tensor, rows: int) -> MemoryBank:
    bank = MemoryBank(frames=key.shape[1] // rows, backend="triton")
    for first in range(0, key.shape[1] - rows + 1, rows):
        bank.append(*(tensor[:, first : first + rows].mT[..., None] for tensor in (key, value)))
    return bank


def _replayed(route: Route, workload: Workload) -> Read | str:
    """The read as a CUDA graph, recorded when its inputs are first seen: what is left of a call without the host."""
    read = route.build(workload)
    if isinstance(read, str):
        return read
    recorded: dict[int, tuple[Callable[[], None], Tensor]] = {}

    def replayed(query: Tensor, *memory: Tensor) -> Tensor:
        if query.data_ptr() not in recorded:
            recorded[query.data_ptr()] = _record(read, query, *memory)
        replay, out = recorded[query.data_ptr()]
        replay()
        return out

    return replayed


def _record(read: Read, *inputs: Tensor) -> tuple[Callable[[], None], Tensor]:
    """What replays the graph of a read, and the result that it writes to."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            read(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = read(*inputs)
    return graph.replay, out


_TRITON = ROUTES["triton"]
_FORWARD = replace(_TRITON, passes=("forward",))
_TILED = [
    replace(
        _FORWARD,
        name=name,
        what=f"stm_fast, the portable kernel, {fields or 'its tile'}",
        make=partial(_with_tile, fields),
    )
    for name, fields in TILES.items()
]
_ROUTES = (
    replace(_TRITON, name="triton-channels", what="stm_fast, all three tensors channels first", layout="channels"),
    replace(_FORWARD, name="triton-bank", what="stm_fast, MemoryBank.read", make=_from_bank),
    *_TILED,
    *(
        replace(_FORWARD, name=f"{route.name}-graph", what="stm_fast, replayed", make=partial(_replayed, route))
        for route in (_TRITON, _TILED[0])
    ),
)
PACKAGE_ROUTES = {route.name: route for route in _ROUTES}
