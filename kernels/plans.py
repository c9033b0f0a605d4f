"""What was worked out for one layout of tensors, kept for the next read of that layout."""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from torch import Tensor

# a bank that grows brings a new shape every few frames: old ones must go
MOST_PLANS = 512

Plan = TypeVar("Plan")


class Plans(Generic[Plan]):
    """The MOST_PLANS latest plans, each by what it was made for; for any number of threads."""

    def __init__(self) -> None:
        self._plans: dict[Hashable, Plan] = {}
        self._lock = Lock()
        self.get: Callable[[Hashable], Plan | None] = self._plans.get
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self._plans)

    def keep(self, purpose: Hashable, plan: Plan) -> Plan:
        with self._lock:
            self._plans[purpose] = plan
            while len(self._plans) > MOST_PLANS:
                del self._plans[next(iter(self._plans))]
        return plan

    def clear(self) -> None:
        with self._lock:
            self._plans.clear()


_ALL: "WeakSet[Plans[Any]]" = WeakSet()


def forget_plans() -> None:
    """Forgets every plan; needed after a change of anything that plans are made from, as in a test."""
    for plans in _ALL:
        plans.clear()


def layout_of(tensor: Tensor | None) -> Hashable:
    """All of a tensor that a kernel is chosen, compiled and launched by, but its address."""
    if tensor is None:
        return None
    # Triton compiles another kernel for addresses that 16 does not divide
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % 16
