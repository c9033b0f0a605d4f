"""A bank sharded over the ranks of a process group: slot s is on rank s % world, which reads it.

All ranks process the same frames in the same order and make the same decisions about slots. A read merges the
(out, lse) of every rank exactly, with one all-gather, in the order of the ranks, so all ranks get identical bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from stm_fast.memory.read_parts import ReadResult


class RankLostError(RuntimeError):
    """Another rank has stopped or does not respond; the message is one line, for the user."""


class Shard:
    """This process's shard of the slots; without a group, all of them.

    If a rank does not respond within the group's timeout (``init_process_group(timeout=...)``), the read raises
    RankLostError. Under NCCL that requires ``TORCH_NCCL_BLOCKING_WAIT=1``; otherwise its watchdog ends the process.

    Args:
        group: the process group; None for a single process.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)

    def holds(self, slot: int) -> bool:
        """Whether the slot is on this rank."""
        return slot % self.world == self.rank

    def local(self, slot: int) -> int:
        """The slot's number on its rank."""
        return slot // self.world

    def count(self, slots: int) -> int:
        """How many of the first `slots` slots are on this rank."""
        return (slots - self.rank + self.world - 1) // self.world

    def max_count(self, slots: int) -> int:
        """How many of the first `slots` slots are on rank 0, which has the most."""
        return -(-slots // self.world)

    def join(self, mine: ReadResult) -> ReadResult:
        """The result of reading the whole memory, on every rank."""
        if self.world == 1:
            return mine
        dtype = torch.promote_types(mine.out.dtype, torch.float32)
        packed = torch.cat([mine.out.to(dtype), mine.lse[..., None].to(dtype)], dim=-1)  # [O, M, Cv + 1]
        first, *rest = (ReadResult(part[..., :-1], part[..., -1]) for part in self._gather(packed))
        for other in rest:
            first = first.merged(other)
        return ReadResult(first.out.to(mine.out.dtype), first.lse)

    def join_usage(self, mine: Tensor, slots: int) -> Tensor:
        """The usage of every rank's slots, each [O, local slots, ...], as [O, slots, ...]."""
        if self.world == 1:
            return mine
        padded = mine.new_zeros(mine.shape[0], self.max_count(slots), *mine.shape[2:])
        padded[:, : mine.shape[1]] = mine
        return torch.stack(self._gather(padded), dim=2).flatten(1, 2)[:, :slots]

    def broadcast(self, source: int, tensor: Tensor) -> None:
        """Overwrites a tensor on every rank with that of the rank that holds the slot `source`."""
        if self.world == 1:
            return
        sent = self._buffer_like(tensor, tensor.device).copy_(tensor)
        with self._collective():
            dist.broadcast(sent, group=self._group, group_src=source % self.world)
        tensor.copy_(sent)

    def copy(self, source: int, target: int, rows: Tensor | None, into: Tensor | None, device: torch.device) -> None:
        """Copies a tensor of one slot to another slot.

        Args:
            source, target: the slots.
            rows: the tensor of `source` on its rank, None elsewhere.
            into: the tensor of `target` on its rank, None elsewhere.
            device: the model's, from which NCCL sends.
        """
        if rows is not None and into is not None:
            into.copy_(rows)
        elif rows is not None:
            sent = self._buffer_like(rows, device).copy_(rows)
            with self._collective():
                dist.send(sent.view(torch.uint8), group=self._group, group_dst=target % self.world)
        elif into is not None:
            received = self._buffer_like(into, device)
            with self._collective():
                dist.recv(received.view(torch.uint8), group=self._group, group_src=source % self.world)
            into.copy_(received)

    def _buffer_like(self, like: Tensor, device: torch.device) -> Tensor:
        """An empty tensor that the group can send or receive; gloo supports host memory only."""
        place = device if dist.get_backend(self._group) == dist.Backend.NCCL else "cpu"
        return torch.empty_like(like, device=place, memory_format=torch.contiguous_format)

    def _gather(self, mine: Tensor) -> list[Tensor]:
        """The tensor of every rank."""
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(self.world)]
        with self._collective():
            dist.all_gather(parts, mine.contiguous(), group=self._group)
        return parts

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """Turns errors of collective operations inside the block into RankLostError."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise RankLostError(f"rank {self.rank} of {self.world}: another rank is gone: {reason}") from error
