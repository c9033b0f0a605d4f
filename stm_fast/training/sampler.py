"""The clips of each step and process."""

from collections.abc import Iterator
from dataclasses import dataclass

from stm_fast.data.clips import SampleKey
from stm_fast.training.config import TrainingConfig
from stm_fast.training.schedule import max_skip


@dataclass(frozen=True)
class StepSampler:
    """Yields the keys of the clips that this process loads, for each part of each step from `first` to the end.

    The clips of a run are numbered consecutively; step s has the ``batch`` clips from ``s * batch`` on. So an epoch
    need not be a whole number of steps, and a run may resume within an epoch. Processes divide the clips of a step,
    which do not depend on the number of processes.

    Attributes:
        config: of the run.
        first: the first step, counted from 0.
        rank, world_size: number of this process, and of all processes.
    """

    config: TrainingConfig
    first: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[SampleKey]]:
        batch, parts = self.config.optimizer.batch, self.config.optimizer.accumulate
        share = batch // (parts * self.world_size)
        for step in range(self.first, self.config.steps):
            for part in range(parts):
                start = step * batch + (part * self.world_size + self.rank) * share
                yield [self._key(number) for number in range(start, start + share)]

    def _key(self, number: int) -> SampleKey:
        epoch, index = divmod(number, self.config.clips_per_epoch)
        return SampleKey(epoch, index, max_skip(self.config.skip, epoch))
