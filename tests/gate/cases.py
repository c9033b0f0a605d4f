"""Every case of the gate, and which configurations they have to reach."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import torch

from gate.compiling import Case, Layout, Scores
from stm_fast.kernels.configs import all_configs
from stm_fast.kernels.configs_quantized import OLDEST_FP8, quantized_config
from stm_fast.kernels.experimental.configs_hopper import ALL_HOPPER_CONFIGS
from stm_fast.kernels.targets import ARCHITECTURES

Shape = tuple[int, int, Layout, Scores]  # Ck, Cv

_FORWARD_HALF: tuple[Shape, ...] = (
    (128, 512, "rows", "dot"),
    (64, 512, "rows", "dot"),
    (64, 256, "rows", "dot"),
    (64, 128, "rows", "dot"),
    (128, 128, "rows", "dot"),
    (128, 256, "rows", "dot"),
    (80, 128, "rows", "dot"),
    (32, 32, "rows", "dot"),
    (176, 192, "rows", "dot"),
    (192, 512, "rows", "dot"),
    (256, 512, "rows", "dot"),
    (240, 640, "rows", "dot"),
    (128, 512, "channels", "dot"),
    (127, 511, "odd", "dot"),
    (64, 512, "rows", "l2 all"),
    (128, 512, "rows", "l2 all"),
    (128, 128, "rows", "l2 all"),
    (80, 128, "rows", "l2 all"),
    (192, 512, "rows", "l2 all"),
    (256, 256, "rows", "l2 all"),
    (127, 511, "odd", "l2 all"),
    (255, 511, "odd", "l2 all"),
)
_FORWARD_FLOAT32: tuple[Shape, ...] = ((128, 512, "rows", "dot"), (127, 511, "odd", "l2 all"))
_BACKWARD_HALF: tuple[Shape, ...] = (
    (128, 512, "rows", "dot"),
    (64, 512, "rows", "l2 all"),
    (127, 511, "odd", "l2 all"),
)
_BACKWARD_FLOAT32: Shape = (127, 511, "odd", "l2 all")

FORWARD = Case("forward", 90, "half", torch.bfloat16, 128, 512)
COMBINE = FORWARD._replace(kernel="combine")
QUANTIZED = FORWARD._replace(kernel="quantized", dtype=torch.int8, queries=1620, rows=1620)
HOPPER = FORWARD._replace(kernel="hopper", splits=1)


def portable_cases() -> Iterator[Case]:
    """The kernels of a memory of floats."""
    gradients = ("grad_scores", "grad_value", "grad_key", "grad_query")
    top_k = ("maxima", "candidates")
    for architecture in ARCHITECTURES:
        for shape in _FORWARD_HALF:
            yield Case("forward", architecture, "half", torch.bfloat16, *shape)
        yield Case("forward", architecture, "half", torch.float16, *_FORWARD_HALF[0])
        for arithmetic, shape in product(("ieee", "tf32x3"), _FORWARD_FLOAT32):
            yield Case("forward", architecture, arithmetic, torch.float32, *shape)
        yield Case("rows", architecture, "half", torch.bfloat16, 128, 512, "channels")
        yield Case("rows", architecture, "ieee", torch.float32, 128, 512, "channels")
        for kernel in ("combine", "delta", "weighted"):
            yield Case(kernel, architecture, "half", torch.bfloat16, *_BACKWARD_HALF[0])
            yield Case(kernel, architecture, "ieee", torch.float32, *_BACKWARD_HALF[0])
        for kernel, shape in product((*gradients, *top_k), _BACKWARD_HALF):
            yield Case(kernel, architecture, "half", torch.bfloat16, *shape)
        yield Case("grad_value", architecture, "half", torch.bfloat16, 128, 128, "rows")
        for kernel in ("usage", *top_k):
            yield Case(kernel, architecture, "half", torch.bfloat16, 256, 512, "rows")
        yield Case("usage", architecture, "half", torch.bfloat16, *_BACKWARD_HALF[-1])
        for kernel in (*gradients, *top_k, "row_totals"):
            yield Case(kernel, architecture, "ieee", torch.float32, *_BACKWARD_FLOAT32)
        for kernel in ("grad_key", *top_k):
            yield Case(kernel, architecture, "tf32x3", torch.float32, *_BACKWARD_FLOAT32)


def quantized_cases() -> Iterator[Case]:
    """Every tile, with the widths of a usual network, of the package's own weights, and odd ones."""
    for architecture in ARCHITECTURES:
        for dtype in (torch.int8, torch.float8_e4m3fn) if architecture >= OLDEST_FP8 else (torch.int8,):
            whole = QUANTIZED._replace(architecture=architecture, dtype=dtype)
            yield whole
            if architecture in (90, 100):
                yield whole._replace(key_dim=80, value_dim=128)
            if architecture == 90:
                yield whole._replace(key_dim=33, value_dim=300, rows=77, layout="odd")


def hopper_cases() -> Iterator[Case]:
    """The experimental kernel: both tiles, whole reads and parts in float32; Triton compiles numbers of 1 in."""
    yield HOPPER
    yield HOPPER._replace(key_dim=64, splits=5, lengths=False)
    yield HOPPER._replace(dtype=torch.float16, splits=5)
    yield HOPPER._replace(dtype=torch.float16, lengths=False, queries=1, rows=1)


def unvisited(choices: Iterable[tuple[Case, Any]]) -> list[str]:
    """The configurations that could be chosen at run time and that no case, given with its own, compiles."""
    visited = {(case.architecture, case.arithmetic, config) for case, config in choices}
    missing = [choice for choice in reachable() if choice not in visited]
    return [f"not visited: sm_{architecture} {arithmetic} {config}" for architecture, arithmetic, config in missing]


def reachable() -> Iterator[tuple[int, str, object]]:
    """Every (architecture, arithmetic, configuration) that is chosen at run time."""
    yield from all_configs()
    for architecture in ARCHITECTURES:
        yield architecture, "half", quantized_config(architecture, True, 512)
    for architecture in (90, 100):
        yield architecture, "half", quantized_config(architecture, True, 128)
    yield 90, "half", quantized_config(90, False, 300)
    for config in ALL_HOPPER_CONFIGS:
        yield 90, "half", config
