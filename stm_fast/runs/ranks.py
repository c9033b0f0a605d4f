"""The processes of a run, as torchrun starts them.

PyTorch is imported only where processes communicate, so that the environment can be checked without it.
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
# variables that torchrun sets
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# processes that work on separate videos finish hours apart, without communicating in between
_PATIENCE = timedelta(days=7)
# processes that share a memory communicate at every frame; a checkpoint of a large bank takes longest
_SILENCE = timedelta(minutes=5)


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of a run; by default the only one.

    Attributes:
        rank: the index of this process.
        world: the number of processes.
        local_rank: the index of this process on its machine.
        group: for joint decisions at every frame; None if each process works on its own.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    group: Optional["ProcessGroup"] = None

    @property
    def leads(self) -> bool:
        """Whether this process writes their joint results."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The share of this process: every `world`-th item."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Waits for all processes. Raises InputError if they cannot connect."""
        if self.world == 1:
            return
        import torch.distributed as distributed

        if not distributed.is_initialized():
            # kept until the end: a second group would find the addresses of the first one in the store
            _join("gloo", _PATIENCE)
            atexit.register(distributed.destroy_process_group)
        distributed.barrier()

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process of the group has it set; the same on all. Also waits for all processes.

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
        """The result of an action on this process. Raises InputError on all processes if the action does so on any."""
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
            raise InputError(f"rank {self.rank} of {self.world}: stopped; rank {failed.index(True)} reports the reason")
        return cast(Item, result)

    def lead(self, check: Callable[[], Any]) -> None:
        """Runs a check on rank 0; if it raises InputError, so do all processes.

        Only one process may check what is on disk, because another one may be writing already.
        """
        self.together(check if self.leads else lambda: None)


def launched() -> Ranks:
    """The ranks from the environment variables that torchrun sets; a single process without them.

    Raises InputError for an invalid number, or if only some of the variables are set.
    """
    world = _number("WORLD_SIZE", 1, _MOST_PROCESSES, 1)
    rank = _number("RANK", 0, world - 1, 0)
    local_rank = _number("LOCAL_RANK", 0, world - 1, 0)
    if world > 1 or "LOCAL_RANK" in os.environ:
        missing = [name for name in _NEEDED if not os.environ.get(name)]
        if missing:
            needed = ", ".join(_NEEDED)
            raise InputError(f"{missing[0]}: missing in the environment, expected {needed}, as set by torchrun")
        _number("MASTER_PORT", 1, 2**16 - 1, 1)
    return Ranks(rank, world, local_rank)


def of_group(group: Optional["ProcessGroup"]) -> Ranks:
    """The ranks of a process group with a backend for CPU tensors, such as gloo; without a group, a single process."""
    if group is None:
        return Ranks()
    import torch.distributed as distributed

    return Ranks(distributed.get_rank(group), distributed.get_world_size(group), group=group)


@contextmanager
def joined(needed: bool) -> Iterator[Ranks]:
    """All processes as one group, for CPU and GPU tensors; this one alone if no group is `needed`.

    Raises InputError if the processes cannot connect.
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
        # otherwise an unknown host name would be retried until the timeout
        socket.getaddrinfo(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
        distributed.init_process_group(backend, timeout=timeout)
    except (OSError, ValueError, distributed.DistError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(f"MASTER_ADDR, MASTER_PORT: the processes cannot connect at {where} ({error})") from error


def _number(name: str, least: int, most: int, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if re.fullmatch("[0-9]{1,9}", text) is None or not least <= int(text) <= most:
        alone = ", because WORLD_SIZE is not set" if most == 0 and "WORLD_SIZE" not in os.environ else ""
        raise InputError(f"{name}: found {text[:40]!r} in the environment, expected {least} to {most}{alone}")
    return int(text)
