"""Routes of the package itself that are timed beside the others to decide something: layouts and tiles."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stm_fast.benchmarking.attention import Read
from stm_fast.benchmarking.routes import ROUTES, Route
from stm_fast.benchmarking.workload import KEY_DIM, VALUE_DIM, Workload

# name, and the fields of the forward tile that are not those of configs.py
TILES: dict[str, dict[str, int]] = {
    "triton-2-stages": {"num_stages": 2},
    "triton-3-stages": {"num_stages": 3},
}


def contestants() -> dict[str, Route]:
    """By name."""
    return {route.name: route for route in _contestants()}


def _contestants() -> Iterator[Route]:
    ours = ROUTES["triton"]
    yield replace(ours, name="triton-channels", what="stm_fast, all three tensors channels first", layout="channels")
    for name, fields in TILES.items():
        yield replace(ours, name=name, what=f"stm_fast, {fields}", build=partial(_with_tile, fields))


def _with_tile(fields: dict[str, int], workload: Workload) -> Read | str:
    """The forward read with another tile."""
    from stm_fast.kernels.configs import forward_config
    from stm_fast.kernels.launch import arithmetic_of
    from stm_fast.kernels.targets import target_of
    from stm_fast.kernels.tiles import Choice
    from stm_fast.kernels.tuned import using

    if workload.pass_name != "forward":
        return "its tile is of the forward read"
    architecture = target_of(torch.device(workload.device)).architecture
    choice = Choice(architecture, arithmetic_of(workload.dtype), KEY_DIM, VALUE_DIM, regular=True, weighted=False)
    with using({}):
        tile = replace(forward_config(choice), **fields)
    return _inside(partial(using, {("forward", choice): tile}), ROUTES["triton"].build(workload))


def _inside(setting: Callable[[], Any], read: Read | str) -> Read | str:
    if isinstance(read, str):
        return read

    def read_inside(query: Tensor, *memory: Tensor) -> Tensor:
        with setting():
            return read(query, *memory)

    return read_inside
