"""How many steps a run has time for."""

import time

# the first steps compile kernels and allocate memory
_WARMUP_STEPS = 5
# steps from there to the first estimate; each further one comes after twice as many
_MEASURED_STEPS = 15
# share of the remaining time, for steps that are slower than the mean
_MARGIN = 0.02


class TimeBudget:
    """Estimates, with increasing precision, how many steps will be done at a given time.

    Args:
        step: how many are done now.
        end: when the last one has to be done, on the monotonic clock.
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
        """After step `step`: an estimate of all steps, or None between two estimates."""
        now = time.monotonic()
        if step <= self._steady:
            self._since = now
        if step != self._next:
            return None
        self._next += step - self._steady
        each = (now - self._since) / (step - self._steady)
        return step + max(0, int((1 - _MARGIN) * (self.end - now) / each))
