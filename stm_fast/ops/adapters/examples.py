"""Small random memories, with which adapt() compares a published read with the one that would replace it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# a few objects, frames and pixels
OBJECTS, FRAMES, HEIGHT, WIDTH = 2, 2, 3, 3
KEY_DIM, VALUE_DIM = 4, 6
# relative; far above the rounding of float64, far below what another formula would change
TOLERANCE = 1e-6

# reads an example with a layer, with an object that has a class's methods, or with functions by name
Example = Callable[[Any], Tensor]


def disagreement(published: Any, ours: Any, examples: tuple[Example, ...]) -> str | None:
    """How two reads differ on the first of the examples that the published one can read; None if they agree."""
    reason = None
    for example in examples:
        try:
            with torch.no_grad():
                expected = example(published)
        except Exception as error:  # whatever a stranger's code raises for a shape that it does not take
            reason = f"it cannot read an example ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            continue
        with torch.no_grad():
            found = example(ours)
        difference = float((found - expected).norm() / expected.norm())
        return None if difference <= TOLERANCE else f"its read differs by {difference:.1g} from that one's formula"
    return reason


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _memory(objects: int = OBJECTS, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Keys [O, Ck, T, H, W] and values [O, Cv, T, H, W]."""
    size = frames, HEIGHT, WIDTH
    return _normal(0, objects, KEY_DIM, *size), _normal(1, objects, VALUE_DIM, *size)


def _frame(objects: int = OBJECTS) -> tuple[Tensor, Tensor]:
    """Keys [O, Ck, H, W] and values [O, Cv, H, W]."""
    return _normal(2, objects, KEY_DIM, HEIGHT, WIDTH), _normal(3, objects, VALUE_DIM, HEIGHT, WIDTH)


def stm(layer: Any) -> Tensor:
    return _first(layer.forward(*_memory(), *_frame()))


def stm_rows(layer: Any) -> Tensor:
    """STM-Training's memory [O, N, C]."""
    return _first(layer.forward(*(tensor.flatten(2).mT for tensor in _memory()), *_frame()))


def stcn(layer: Any) -> Tensor:
    (mk, mv), (qk, qv) = _memory(), _frame()
    return _first(layer.readout(layer.get_affinity(mk, qk), mv, qv))


def mivos(layer: Any) -> Tensor:
    # the published code takes one object at a time, and at least top_k rows
    frames = FRAMES + int(layer.top_k or 0) // (HEIGHT * WIDTH)
    return _first(layer.forward(*_memory(1, frames), _frame(1)[0]))


def aot(layer: Any) -> Tensor:
    width = layer.linear_Q.in_features if layer.use_linear else layer.num_head * layer.d_att
    value_width = width if layer.use_linear else layer.projection.in_features
    pixels = HEIGHT * WIDTH
    query, key = _normal(0, pixels, 1, width), _normal(1, _rows(layer), 1, width)
    return _first(layer.forward(query, key, _normal(2, len(key), 1, value_width)))


def deaot(layer: Any) -> Tensor:
    width = layer.linear_QK.in_features if layer.use_linear else layer.num_head * layer.d_att
    value_width = 2 * layer.linear_V1.in_features if layer.use_linear else layer.projection.in_features
    pixels = HEIGHT * WIDTH
    # with linear layers the query is the key, and there are as many values
    rows = pixels if layer.use_linear else _rows(layer)
    query, key, value = _normal(0, pixels, 1, width), _normal(1, rows, 1, width), _normal(2, rows, 1, value_width)
    return _first(layer.forward(query, key, value, _normal(3, pixels, 1, value_width), (HEIGHT, WIDTH)))


def stcn_bank(methods: Any) -> Tensor:
    (mk, mv), (qk, _) = _memory(), _frame(1)
    affinity = methods._global_matching(mk[:1].flatten(2), qk.flatten(2))
    return _first(methods._readout(affinity.expand(OBJECTS, -1, -1), mv.flatten(2)))


def xmem(functions: Mapping[str, Callable[..., Any]]) -> Tensor:
    """With shrinkage and selection: in training, and at test time with top_k and usage."""
    (mk, mv), (qk, _) = _memory(), _frame()
    shrinkage, selection = 1 + _memory()[0][:, :1].square(), _frame()[0].sigmoid()
    keys = mk, shrinkage, qk, selection
    read = functions["readout"](functions["get_affinity"](*keys), mv)
    flat = (tensor.flatten(2) for tensor in keys)
    affinity, usage = functions["do_softmax"](functions["get_similarity"](*flat), top_k=5, return_usage=True)
    return torch.cat([read.flatten(), (mv.flatten(2) @ affinity).flatten(), usage.flatten()])


def _rows(layer: Any) -> int:
    """More memory rows than top_k counts, and more than pixels, by which scores may be multiplied."""
    return max(int(layer.top_k), 0) + 2 * HEIGHT * WIDTH


def _first(result: Any) -> Tensor:
    """The read, which some return with their affinity."""
    read: Tensor = result[0] if isinstance(result, tuple) else result
    return read
