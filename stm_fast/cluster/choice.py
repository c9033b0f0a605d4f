"""Which Ray cluster to use, and how much of it. Nothing here imports Ray."""

import re
from typing import NamedTuple

from stm_fast.errors import InputError, option, shown

# the cluster that RAY_ADDRESS names or that runs on this machine; if there is none, a new one
AUTO = "auto"
# a new one on this machine, which ends with the run
LOCAL = "local"
_CLIENT = "ray://"
_ADDRESS = re.compile(rf"(?:{_CLIENT})?([A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{{1,5}})")


class ClusterChoice(NamedTuple):
    """A cluster, and the workers on it: processes that keep one network each.

    Attributes:
        address: "auto", "local", "host:port", or "ray://host:port" of a Ray Client server.
        workers: their number; by default, as many as there is room for.
        cpus: CPU cores for each of them.
        gpus: GPUs for each of them, such as 0.5; by default one, or none if the cluster has none.
    """

    address: str = AUTO
    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None

    def for_device(self, device: str) -> "ClusterChoice":
        """The choice for networks on this device: on a CPU, by default without GPUs."""
        return self._replace(gpus=0) if device == "cpu" and self.gpus is None else self


def is_address(text: str) -> bool:
    """Whether this is the address of a cluster."""
    return text in (AUTO, LOCAL) or _ADDRESS.fullmatch(text) is not None


def host_and_port(address: str) -> tuple[str, int] | None:
    """Where a cluster listens; None for "auto" and "local". Raises InputError for any other text."""
    if address in (AUTO, LOCAL):
        return None
    match = _ADDRESS.fullmatch(address)
    if match is None:
        expected = f"{AUTO}, {LOCAL}, host:port or {_CLIENT}host:port"
        raise InputError(f"{option('ray')}: found {shown(address)}, expected {expected}")
    return match[1].strip("[]"), int(match[2])
