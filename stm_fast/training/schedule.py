"""What changes while a run goes on, as functions of how far it is: nothing to save, nothing to restore."""

import math

from stm_fast.training.config import Schedule, Skip


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the learning rate is multiplied with at a step, counted from 0, of a run of `steps`.

    The paper's rate is constant, which its author does not keep to; re-implementations take the polynomial of DeepLab,
    ``(1 - step / steps) ** power``. In the first `warmup` steps the factor rises linearly on top of that.
    """
    done = min(step / steps, 1.0)
    factor = 1.0
    if schedule.name == "poly":
        factor = (1 - done) ** schedule.power
    elif schedule.name == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    return factor * min((step + 1) / (schedule.warmup + 1), 1.0)


def max_skip(skip: Skip, epoch: int) -> int:
    """The most frames left out between two frames of a clip in an epoch, counted from 0 (STM, "Main training")."""
    return min(skip.first + skip.step * (epoch // skip.every), skip.most)
