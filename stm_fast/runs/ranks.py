"""The processes of a run, as torchrun starts them.

PyTorch is imported where processes exchange something: the environment is checked without it.
"""

import atexit
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Optional, TypeVar, cast

from stm_fast.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Item = TypeVar("Item")

_MOST_PROCESSES = 2**16
# what torchrun sets, and what several processes need
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# the processes that share out a set finish hours apart, and exchange nothing meanwhile
_PATIENCE = timedelta(days=7)
# processes that share a memory exchange something at every frame; a checkpoint of a large bank takes longest
_SILENCE = timedelta(minutes=5)


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of a run; by default it is the only one.

    Attributes:
        rank: the number of this process.
        world: how many processes there are.
        local_rank: the number of this process on its machine.
        group: through which they decide alike at every frame; None where each works on its own.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    group: Optional["ProcessGroup"] = None

    @property
    def leads(self) -> bool:
        """Whether this process writes what they write together."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `world`-th item: the share of this process."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Returns when every process has come here. Raises InputError where they do not find one another."""
        if self.world == 1:
            return
        import torch.distributed as distributed

        if not distributed.is_initialized():
            # kept until the end: a second group would find the first one's addresses in the store
            _join("gloo", _PATIENCE)
            atexit.register(distributed.destroy_process_group)
        distributed.barrier()

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any process of the group has it set; each has waited for all, and gets the same answer.

        Raises:
            RankLostError: another process is gone.
        """
        if self.group is None:
            return list(flags)
        import torch
        import torch.distributed as distributed

        from stm_fast.memory import RankLostError

        votes = torch.tensor(flags, dtype=torch.int32)
        try:
            distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self.group)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise RankLostError(f"rank {self.rank} of {self.world}: another rank is gone: {reason}") from error
        return [bool(vote) for vote in votes.tolist()]

    def together(self, action: Callable[[], Item]) -> Item:
        """What an action gives on each process; raises InputError on every one of them where it does on any."""
        problem: InputError | None = None
        result: Item | None = None
        try:
            result = action()
        except InputError as error:
            problem = error
        failed = self.any(*(problem is not None and rank == self.rank for rank in range(self.world)))
        if problem is not None:
            raise problem
        if True in failed:
            raise InputError(f"rank {self.rank} of {self.world}: stopped, rank {failed.index(True)} says why")
        return cast(Item, result)

    def lead(self, check: Callable[[], Any]) -> None:
        """Runs a check on rank 0, and raises InputError on every process where it does.

        A check of what is on disk has to come from one process: another one may be writing there already.
        """
        self.together(check if self.leads else lambda: None)


def launched() -> Ranks:
    """The processes that torchrun started, by the environment; one alone where it says nothing.

    Raises InputError: no whole number, one out of range, or some of the variables without the others.
    """
    world = _number("WORLD_SIZE", 1, _MOST_PROCESSES, 1)
    rank = _number("RANK", 0, world - 1, 0)
    local_rank = _number("LOCAL_RANK", 0, world - 1, 0)
    if world > 1 or "LOCAL_RANK" in os.environ:
        missing = [name for name in _NEEDED if not os.environ.get(name)]
        if missing:
            raise InputError(f"{missing[0]}: missing in the environment, expected {', '.join(_NEEDED)}, as of torchrun")
        _number("MASTER_PORT", 1, 2**16 - 1, 1)
    return Ranks(rank, world, local_rank)


def of_group(group: Optional["ProcessGroup"]) -> Ranks:
    """The ranks of a process group, which needs a backend for CPU tensors such as gloo; one process without a group."""
    if group is None:
        return Ranks()
    import torch.distributed as distributed

    return Ranks(distributed.get_rank(group), distributed.get_world_size(group), group=group)


@contextmanager
def joined(needed: bool) -> Iterator[Ranks]:
    """All processes as one group, for tensors on CPU and GPU; this one alone where that is not needed.

    Raises InputError where the processes do not find one another.
    """
    if not needed:
        yield Ranks()
        return
    import torch
    import torch.distributed as distributed

    _join("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", _SILENCE)
    try:
        yield of_group(distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()


def _join(backend: str, timeout: timedelta) -> None:
    import torch.distributed as distributed

    try:
        # an unknown host name would be tried again until the timeout
        socket.getaddrinfo(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
        distributed.init_process_group(backend, timeout=timeout)
    except (OSError, ValueError, distributed.DistError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(f"MASTER_ADDR, MASTER_PORT: the processes do not meet at {where} ({error})") from error


def _number(name: str, least: int, most: int, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if re.fullmatch("[0-9]{1,9}", text) is None or not least <= int(text) <= most:
        alone = ", as WORLD_SIZE is not set" if most == 0 and "WORLD_SIZE" not in os.environ else ""
        raise InputError(f"{name}: found {text[:40]!r} in the environment, expected {least} to {most}{alone}")
    return int(text)
