"""The backends of memory_read(), each with its reasons not to run, and the choice between them."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch

from stm_fast.arguments import shown
from stm_fast.choices import Engine
from stm_fast.ops import cpp_ops, reference, triton_ops
from stm_fast.ops.inputs import Reader, ReadInputs, ReadResult

logger = logging.getLogger(__name__)

Inputs = TypeVar("Inputs")
Result = TypeVar("Result")


class Backend(NamedTuple, Generic[Inputs, Result]):
    """One way to run a read.

    absent_reasons:      why it cannot run on this machine at all; empty if it can
    unsupported_reasons: why it cannot run these inputs; empty if it can
    reader:              what later calls with equal layouts and options may call directly, without gradients; or None
    """

    name: Engine
    absent_reasons: Callable[[], list[str]]
    unsupported_reasons: Callable[[Inputs], list[str]]
    read: Callable[[Inputs], Result]
    reader: Callable[[Inputs], Reader | None] = lambda _inputs: None


def no_reasons(*_inputs: object) -> list[str]:
    """For a backend that runs on every machine, or supports all inputs."""
    return []


# in the order of preference of backend="auto"; the reference, last, supports all inputs
BACKENDS: tuple[Backend[ReadInputs, ReadResult], ...] = (
    Backend("triton", triton_ops.absent_reasons, triton_ops.unsupported_reasons, triton_ops.read, triton_ops.reader),
    Backend("cpp", cpp_ops.absent_reasons, cpp_ops.unsupported_reasons, cpp_ops.read, cpp_ops.reader),
    Backend("reference", no_reasons, no_reasons, reference.read, reference.reader),
)


def choose(
    name: str, inputs: Inputs, backends: Sequence[Backend[Inputs, Result]], what: str = "memory read"
) -> Backend[Inputs, Result]:
    """The named backend, or for "auto" the first that can run these inputs.

    Raises ValueError for an unknown name and NotImplementedError, with every reason, for a named backend that cannot.
    """
    names = [backend.name for backend in backends]
    if not isinstance(name, str) or name not in ("auto", *names):
        raise ValueError(f'backend: found {shown(name)}, expected "auto" or one of {", ".join(names)}')
    for backend in backends:
        if name not in ("auto", backend.name):
            continue
        reasons = backend.absent_reasons() or backend.unsupported_reasons(inputs)
        if not reasons:
            _log(what, backend.name)
            return backend
        if name != "auto":
            raise NotImplementedError(f"backend {name!r} cannot run this {what}: {'; '.join(reasons)}")
        _log(what, f"not {backend.name}: {'; '.join(reasons)}")
    raise AssertionError("the last backend supports all inputs")


def _log(what: str, choice: str) -> None:
    # logging would break the graph that torch.compile is tracing
    if not torch.compiler.is_compiling():
        logger.debug("%s: %s", what.replace(" ", "_"), choice)
