"""The backends of memory_read(), each with its reasons for refusing, and the choice between them."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

from stm_fast.arguments import shown
from stm_fast.choices import Engine
from stm_fast.ops import cpp_ops, reference, triton_ops
from stm_fast.ops.inputs import Reader, ReadInputs, ReadResult
from stm_fast.ops.registration import transform_reasons

logger = logging.getLogger(__name__)


def _no_reader(_inputs: ReadInputs) -> None:
    return None


class Backend(NamedTuple):
    """One way to run the memory read.

    absent_reasons:        why it cannot run on this machine at all; empty where it can
    not_supported_reasons: why it cannot run these inputs; empty where it can
    reader:                what later calls like this one may go straight to, without gradients; None for nothing
    """

    name: Engine
    absent_reasons: Callable[[], list[str]]
    not_supported_reasons: Callable[[ReadInputs], list[str]]
    read: Callable[[ReadInputs], ReadResult]
    reader: Callable[[ReadInputs], Reader | None] = _no_reader

    def refusals(self, inputs: ReadInputs) -> list[str]:
        return self.absent_reasons() or self.not_supported_reasons(inputs)


def _engine(
    name: Engine,
    absent_reasons: Callable[[], list[str]],
    not_supported_reasons: Callable[[ReadInputs], list[str]],
    read: Callable[[ReadInputs], ReadResult],
    reader: Callable[[ReadInputs], Reader | None] = _no_reader,
) -> Backend:
    """A backend that is a registered operator, which torch.func cannot transform; plain PyTorch code it can."""

    def all_reasons(inputs: ReadInputs) -> list[str]:
        return [*transform_reasons(), *not_supported_reasons(inputs)]

    return Backend(name, absent_reasons, all_reasons, read, reader)


def _nothing() -> list[str]:
    return []


def _nothing_to_refuse(_inputs: ReadInputs) -> list[str]:
    return []


# the order of preference of backend="auto"; the reference, last, takes everything
BACKENDS = (
    _engine("triton", triton_ops.absent_reasons, triton_ops.not_supported_reasons, triton_ops.read, triton_ops.reader),
    _engine("cpp", cpp_ops.absent_reasons, cpp_ops.not_supported_reasons, cpp_ops.read, cpp_ops.reader),
    Backend("reference", _nothing, _nothing_to_refuse, reference.read, reference.reader),
)
NAMES = tuple(backend.name for backend in BACKENDS)


def choose(name: str, inputs: ReadInputs) -> Backend:
    """The named backend, or for "auto" the first of BACKENDS that takes these inputs.

    Raises ValueError for an unknown name and NotImplementedError, with every reason, for a named backend that refuses.
    """
    if isinstance(name, str) and name == "auto":
        return _first_that_can(inputs)
    backend = next((backend for backend in BACKENDS if isinstance(name, str) and backend.name == name), None)
    if backend is None:
        raise ValueError(f'backend: found {shown(name)}, expected "auto" or one of {", ".join(NAMES)}')
    reasons = backend.refusals(inputs)
    if reasons:
        raise NotImplementedError(f"backend {name!r} cannot run this memory read: {'; '.join(reasons)}")
    _log("memory_read: %s", name)
    return backend


def _first_that_can(inputs: ReadInputs) -> Backend:
    for backend in BACKENDS:
        reasons = backend.refusals(inputs)
        if not reasons:
            _log("memory_read: %s", backend.name)
            return backend
        _log("memory_read: not %s: %s", backend.name, "; ".join(reasons))
    raise AssertionError("the reference takes everything")


def _log(message: str, *arguments: str) -> None:
    # a compiled graph has made its choice already, and logging would break it
    if not torch.compiler.is_compiling():
        logger.debug(message, *arguments)
