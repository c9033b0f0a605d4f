"""Schedules as functions of the step, the epoch or the time, without state."""

import math
import time

from stm_fast.training.config import Schedule, Skip

# the first steps compile kernels and allocate memory
_WARMUP_STEPS = 5
# steps from there to the first estimate; the number doubles for each further estimate
_MEASURED_STEPS = 15
# share of the remaining time that is held back, for steps that are slower than the mean
_MARGIN = 0.02


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The factor on the learning rate at a step, counted from 0, of a run of `steps`.

    The paper's rate is constant, but its author's is not; reimplementations use the polynomial schedule of DeepLab,
    ``(1 - step / steps) ** power``. During the first `warmup` steps, the factor also rises linearly.
    """
    done = min(step / steps, 1.0)
    factor = 1.0
    if schedule.name == "poly":
        factor = (1 - done) ** schedule.power
    elif schedule.name == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    return factor * min((step + 1) / (schedule.warmup + 1), 1.0)


def max_skip(skip: Skip, epoch: int) -> int:
    """The most frames skipped between two frames of a clip in an epoch, counted from 0 (STM, "Main training")."""
    return min(skip.first + skip.step * (epoch // skip.every), skip.most)


class TimeBudget:
    """Estimates the number of steps that fit in the given time; estimates become more precise.

    Args:
        step: number of completed steps.
        end: when the last step has to be completed, by `time.monotonic`.
    """

    def __init__(self, step: int, end: float) -> None:
        self.end = end
        self._steady = step + _WARMUP_STEPS
        self._next = self._steady + _MEASURED_STEPS
        self._since = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return time.monotonic() > self.end

    def steps(self, step: int) -> int | None:
        """After step `step`: an estimate of the total number of steps; None between estimates."""
        now = time.monotonic()
        if step <= self._steady:
            self._since = now
        if step != self._next:
            return None
        self._next += step - self._steady
        each = (now - self._since) / (step - self._steady)
        return step + max(0, int((1 - _MARGIN) * (self.end - now) / each))
