"""The processes that segment one video together: they decide alike, at every frame."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as distributed

from stm_fast.errors import InputError
from stm_fast.memory import RankLostError

Result = TypeVar("Result")


class Crew:
    """All ranks of a process group, of which rank 0 writes the results; one process where there is no group.

    Args:
        group: needs a backend for CPU tensors, such as gloo.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else distributed.get_rank(group)
        self.world = 1 if group is None else distributed.get_world_size(group)

    @property
    def leads(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any process has it set; every process gets the same answer, and has waited for it.

        Raises:
            RankLostError: another process is gone.
        """
        if self._group is None:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        try:
            distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise RankLostError(f"rank {self.rank} of {self.world}: another rank is gone: {reason}") from error
        return [bool(vote) for vote in votes.tolist()]

    def together(self, action: Callable[[], Result]) -> Result:
        """What an action gives on each process; raises InputError on every one of them where it does on any."""
        problem: InputError | None = None
        result: Result | None = None
        try:
            result = action()
        except InputError as error:
            problem = error
        failed = self.any(*(problem is not None and rank == self.rank for rank in range(self.world)))
        if problem is not None:
            raise problem
        if True in failed:
            raise InputError(f"rank {self.rank} of {self.world}: stopped, rank {failed.index(True)} says why")
        return cast(Result, result)

    def agree(self, check: Callable[[], None]) -> None:
        """Runs a check on rank 0, and raises InputError on every process where it does.

        A check of what is on disk has to come from one process: another one may be writing there already.
        """
        self.together(check if self.leads else lambda: None)
