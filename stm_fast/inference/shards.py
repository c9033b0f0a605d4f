"""Work shared out among the processes that torchrun starts."""

import os
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Every `world_size`-th item: this process's share."""
    return items[rank() :: world_size()]
