"""Work shared out among the processes that torchrun starts."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed as distributed

Item = TypeVar("Item")

# shards of a set end hours apart, and nothing is exchanged meanwhile
PATIENCE = timedelta(days=7)


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Every `world_size`-th item: this process's share."""
    return items[rank() :: world_size()]


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if world_size() == 1:
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
