"""Which clips a process loads, from any step on."""

from collections.abc import Iterator
from dataclasses import dataclass

from stm_fast.data.clips import Ticket
from stm_fast.training.config import TrainingConfig
from stm_fast.training.schedule import max_skip


@dataclass(frozen=True)
class TicketSampler:
    """The tickets of each part of a batch that this process loads, from step `first` to the end of the run.

    The clips of a run are numbered through; step s takes the numbers from ``s * batch`` on. Epochs and steps need not
    fit one another, and a run goes on in the middle of an epoch without replaying its start. Processes share out the
    clips of a step: what a step learns from does not depend on how many there are.
    """

    config: TrainingConfig
    first: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[Ticket]]:
        batch, parts = self.config.optimizer.batch, self.config.optimizer.accumulate
        share = batch // (parts * self.world_size)
        for step in range(self.first, self.config.steps):
            for part in range(parts):
                start = step * batch + (part * self.world_size + self.rank) * share
                yield [self._ticket(number) for number in range(start, start + share)]

    def _ticket(self, number: int) -> Ticket:
        epoch, index = divmod(number, self.config.clips_per_epoch)
        return Ticket(epoch, index, max_skip(self.config.skip, epoch))
