"""How many steps a run has time for."""

import time

# steps until the pace is steady: the first ones compile kernels and claim memory
_UNSTEADY = 5
# steps from there to the first estimate; the next ones come after twice as many each
_MEASURED = 15
# of the time that is left, for what is slower now and then
_MARGIN = 0.02


class Pace:
    """Estimates, ever better ones, of how many steps are done at a certain time.

    Args:
        step: how many are done now.
        end: when the last one has to be done, on the monotonic clock.
    """

    def __init__(self, step: int, end: float) -> None:
        self.end = end
        self._steady = step + _UNSTEADY
        self._next = self._steady + _MEASURED
        self._since = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return time.monotonic() > self.end

    def steps(self, step: int) -> int | None:
        """After step `step`: how many there will be, where it is time for an estimate."""
        now = time.monotonic()
        if step <= self._steady:
            self._since = now
        if step != self._next:
            return None
        self._next += step - self._steady
        each = (now - self._since) / (step - self._steady)
        return step + max(0, int((1 - _MARGIN) * (self.end - now) / each))
