"""The connection to a Ray cluster, and the room on it."""

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

from stm_fast.cluster.choice import AUTO, LOCAL, ClusterChoice, host_and_port
from stm_fast.errors import InputError, option, reason_of
from stm_fast.versions import how_to_install

_ADDRESS = "RAY_ADDRESS"
_CONNECT_SECONDS = 5.0
# read by Ray when it is imported: a cluster that is started here would report its use over the network
_NO_REPORTS = {"RAY_USAGE_STATS_ENABLED": "0"}
# Ray would try twenty times, for 40 seconds each, to connect to a port where something else listens, or to the last
# cluster of this machine, if that was killed
_ONCE = {"RAY_NUM_REDIS_GET_RETRIES": "1"}


class Room(NamedTuple):
    """What a run has of a cluster.

    Attributes:
        ray: the module, connected to the cluster.
        workers: their number, at least one.
        cpus, gpus: of each worker.
    """

    ray: ModuleType
    workers: int
    cpus: float
    gpus: float


@contextmanager
def connected(choice: ClusterChoice) -> Iterator[Room]:
    """A cluster, until the end of the block; a connection that exists is used, and kept.

    Raises:
        InputError: Ray is not installed, no cluster answers at the address, or it is too small for one worker.
    """
    with _connection(choice.address) as ray:
        yield _room(ray, choice)


@contextmanager
def _connection(address: str) -> Iterator[ModuleType]:
    if address == AUTO:
        address = os.environ.get(_ADDRESS) or AUTO
    place = host_and_port(address)
    for name, value in (_NO_REPORTS | ({} if address == LOCAL else _ONCE)).items():
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise InputError(f"{option('ray')}: Ray cannot be imported ({error}); {how_to_install('ray')}") from error
    if ray.is_initialized():
        yield ray
        return
    if place is not None:
        _check_answers(address, place)
    try:
        _connect(ray, address)
    except Exception as error:  # of many types, for other versions of Ray or Python
        raise InputError(f"{option('ray')}: no connection to the cluster at {address} ({reason_of(error)})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str, place: tuple[str, int]) -> None:
    """Raises InputError if nothing listens at an address, which Ray would try for minutes."""
    try:
        socket.create_connection(place, _CONNECT_SECONDS).close()
    except OSError as error:
        expected = "expected the address of a Ray cluster"
        raise InputError(f"{option('ray')}: nothing answers at {address} ({reason_of(error)}), {expected}") from error


def _connect(ray: ModuleType, address: str) -> None:
    # the notes of workers come with their results
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == AUTO:
        try:
            ray.init(address=AUTO, **quiet)
            return
        except ConnectionError:  # no cluster runs here
            address = LOCAL
    ray.init(address=address, **quiet, **({"include_dashboard": False} if address == LOCAL else {}))


def _room(ray: ModuleType, choice: ClusterChoice) -> Room:
    whole = ray.cluster_resources()
    gpus = choice.gpus if choice.gpus is not None else min(1.0, whole.get("GPU", 0.0))
    if choice.workers is not None:  # a cluster may grow
        return Room(ray, choice.workers, choice.cpus, gpus)
    needed = {"CPU": choice.cpus, "GPU": gpus}
    for name, amount in needed.items():
        has = whole.get(name, 0.0)
        if amount > has:
            found = option(f"ray_{name.lower()}s")
            raise InputError(f"{found}: found {amount:g}, expected at most {has:g}, what the cluster has")
    free = ray.available_resources()
    room = [int(free.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items() if amount]
    return Room(ray, max(1, min(room, default=1)), choice.cpus, gpus)
