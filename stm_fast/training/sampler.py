"""The clips that a process loads, from any step on."""

from collections.abc import Iterator
from dataclasses import dataclass

from stm_fast.data.clips import SampleKey
from stm_fast.training.config import TrainingConfig
from stm_fast.training.schedule import max_skip


@dataclass(frozen=True)
class StepSampler:
    """The keys of the clips in each part of a batch that this process loads, from step `first` to the end of the run.

    The clips of a run are numbered consecutively; step s takes ``batch`` numbers from ``s * batch`` on. So an epoch
    need not be a whole number of steps, and a run may resume in the middle of one. Processes share the clips of a step:
    which clips it has does not depend on the number of processes.
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
