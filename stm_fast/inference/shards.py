"""Work shared out among the processes that torchrun starts."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from stm_fast.errors import InputError

Item = TypeVar("Item")

_MOST_PROCESSES = 2**16
# what torchrun sets, and what several processes cannot do without
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes(NamedTuple):
    """This process among all of a run."""

    rank: int  # its number, 0 where it is alone
    world_size: int  # how many there are
    local_rank: int  # its number on this machine


def processes() -> Processes:
    """What the environment says of the processes of a run, as torchrun does; one alone where it says nothing.

    Raises InputError: no whole number, one out of range, or some of the variables without the others.
    """
    world_size = _number("WORLD_SIZE", 1, _MOST_PROCESSES, 1)
    rank = _number("RANK", 0, world_size - 1, 0)
    local_rank = _number("LOCAL_RANK", 0, world_size - 1, 0)
    if world_size > 1 or "LOCAL_RANK" in os.environ:
        missing = [name for name in _NEEDED if not os.environ.get(name)]
        if missing:
            raise InputError(f"{missing[0]}: missing in the environment, expected {', '.join(_NEEDED)}, as of torchrun")
        _number("MASTER_PORT", 1, 2**16 - 1, 1)
    return Processes(rank, world_size, local_rank)


def rank() -> int:
    """The number of this process, 0 where it is alone. Raises InputError as `processes` does."""
    return processes().rank


def world_size() -> int:
    """How many processes there are. Raises InputError as `processes` does."""
    return processes().world_size


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Every `world_size`-th item: this process's share. Raises InputError as `processes` does."""
    here = processes()
    return items[here.rank :: here.world_size]


def _number(name: str, least: int, most: int, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if re.fullmatch("[0-9]{1,9}", text) is None or not least <= int(text) <= most:
        alone = ", as WORLD_SIZE is not set" if most == 0 and "WORLD_SIZE" not in os.environ else ""
        raise InputError(f"{name}: found {text[:40]!r} in the environment, expected {least} to {most}{alone}")
    return int(text)
