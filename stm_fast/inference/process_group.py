"""The processes that torchrun starts, where they exchange something."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed

from stm_fast.inference.shards import world_size

# shards of a set end hours apart, and nothing is exchanged meanwhile
PATIENCE = timedelta(days=7)
# processes that share a memory hear of one another at every frame; a checkpoint of a large bank takes longest
SILENCE = timedelta(minutes=5)


@contextmanager
def process_group(needed: bool) -> Iterator[distributed.ProcessGroup | None]:
    """The group of all processes, for tensors on CPU and GPU; None where none is needed."""
    if not needed:
        yield None
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=SILENCE)
    try:
        yield distributed.group.WORLD
    finally:
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if world_size() == 1:
        return
    if not distributed.is_initialized():
        # one group for all times: a second one would find in the store where the first one's processes listened
        distributed.init_process_group("gloo", timeout=PATIENCE)
        atexit.register(distributed.destroy_process_group)
    distributed.barrier()
