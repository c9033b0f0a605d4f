"""A bank spread over the ranks of a process group: every rank keeps every world-th slot and reads those.

All ranks run the same frames in the same order, and each decides alike which frame goes into which slot: slot s lies on
rank s % world. A read is joined exactly from the (out, lse) of every rank, with one all-gather, in the order of the
ranks; so all of them go on with the same bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from stm_fast.memory.reading import Reading


class RankLostError(RuntimeError):
    """Another rank has stopped or does not answer; one line, for the user."""


class Shard:
    """This process's part of the slots: all of them where it is alone.

    A rank that does not answer within the group's timeout (``init_process_group(timeout=...)``) ends the read with
    RankLostError. Under NCCL that needs ``TORCH_NCCL_BLOCKING_WAIT=1``; else its watchdog ends the process.

    Args:
        group: the process group; None where this process is alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)

    def holds(self, slot: int) -> bool:
        """Whether the slot lies here."""
        return slot % self.world == self.rank

    def local(self, slot: int) -> int:
        """The slot's number on the rank where it lies."""
        return slot // self.world

    def count(self, slots: int) -> int:
        """How many of the first slots lie here."""
        return (slots - self.rank + self.world - 1) // self.world

    def most(self, slots: int) -> int:
        """How many of the first slots lie on rank 0, which has most."""
        return -(-slots // self.world)

    def join(self, mine: Reading) -> Reading:
        """The reading of the whole memory, on every rank."""
        if self.world == 1:
            return mine
        dtype = torch.promote_types(mine.out.dtype, torch.float32)
        packed = torch.cat([mine.out.to(dtype), mine.lse[..., None].to(dtype)], dim=-1)  # [O, M, Cv + 1]
        first, *rest = (Reading(part[..., :-1], part[..., -1]) for part in self._gather(packed))
        for other in rest:
            first = first.joined(other)
        return Reading(first.out.to(mine.out.dtype), first.lse)

    def join_usage(self, mine: Tensor, slots: int) -> Tensor:
        """The usage of every rank's slots, each [O, local slots], as [O, slots]."""
        if self.world == 1:
            return mine
        padded = mine.new_zeros(mine.shape[0], self.most(slots))
        padded[:, : mine.shape[1]] = mine
        return torch.stack(self._gather(padded), dim=-1).flatten(1)[:, :slots]

    def copy(self, source: int, target: int, rows: Tensor | None, into: Tensor | None, device: torch.device) -> None:
        """Copies a tensor that belongs to a slot over that of another slot.

        Args:
            source, target: the slots.
            rows: the tensor of `source` on the rank that holds it, None elsewhere.
            into: that of `target`, likewise.
            device: the model's, from which NCCL sends.
        """
        if rows is not None and into is not None:
            into.copy_(rows)
        elif rows is not None:
            sent = self._carried(rows, device).copy_(rows)
            with self._together():
                dist.send(sent.view(torch.uint8), group=self._group, group_dst=target % self.world)
        elif into is not None:
            received = self._carried(into, device)
            with self._together():
                dist.recv(received.view(torch.uint8), group=self._group, group_src=source % self.world)
            into.copy_(received)

    def _carried(self, like: Tensor, device: torch.device) -> Tensor:
        """An empty tensor that the group can send or receive: gloo does so in host memory alone."""
        place = device if dist.get_backend(self._group) == dist.Backend.NCCL else "cpu"
        return torch.empty_like(like, device=place, memory_format=torch.contiguous_format)

    def _gather(self, mine: Tensor) -> list[Tensor]:
        """The tensor of every rank."""
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(self.world)]
        with self._together():
            dist.all_gather(parts, mine.contiguous(), group=self._group)
        return parts

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What is done with other ranks ends with RankLostError where one is gone."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise RankLostError(f"rank {self.rank} of {self.world}: another rank is gone: {reason}") from error
