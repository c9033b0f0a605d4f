"""The processes that torchrun starts, where they exchange something."""

import atexit
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed

from stm_fast.errors import InputError
from stm_fast.inference.shards import world_size

# shards of a set end hours apart, and nothing is exchanged meanwhile
PATIENCE = timedelta(days=7)
# processes that share a memory hear of one another at every frame; a checkpoint of a large bank takes longest
SILENCE = timedelta(minutes=5)


@contextmanager
def process_group(needed: bool) -> Iterator[distributed.ProcessGroup | None]:
    """The group of all processes, for tensors on CPU and GPU; None where none is needed.

    Raises InputError where the processes do not find one another.
    """
    if not needed:
        yield None
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _join(backend, SILENCE)
    try:
        yield distributed.group.WORLD
    finally:
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Returns when every process has come here. Raises InputError where the processes do not find one another."""
    if world_size() == 1:
        return
    if not distributed.is_initialized():
        # one group for all times: a second one would find in the store where the first one's processes listened
        _join("gloo", PATIENCE)
        atexit.register(distributed.destroy_process_group)
    distributed.barrier()


def _join(backend: str, timeout: timedelta) -> None:
    try:
        # the name of a host that nobody knows would be tried again until the timeout
        socket.getaddrinfo(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
        distributed.init_process_group(backend, timeout=timeout)
    except (OSError, ValueError, distributed.DistError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(f"MASTER_ADDR, MASTER_PORT: the processes do not meet at {where} ({error})") from error
